"""The section ``client``: who may connect, and what one connection may do. Values only.

Names, nesting and defaults are those of Centrifugo v6, but for the fields at the end, which are Spread's own.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from spread.node.settings.kinds import DAY_SECONDS, Duration, Secret, Section

__all__ = ["ClientSettings", "PersonalChannel", "SubscriptionTokenSettings", "TokenSettings"]


class TokenSettings(Section, frozen=True, kw_only=True):
    """Keys and rules for tokens (JWT)."""

    hmac_secret_key: Annotated[
        Secret, Meta(description="The secret of tokens signed with HS256, HS384 or HS512.")
    ] = ""
    hmac_previous_secret_key: Annotated[
        Secret, Meta(description="The secret before this one, also accepted while a new one is introduced.")
    ] = ""
    hmac_previous_secret_key_valid_until: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 53,
            description="Seconds since 1970 after which the previous secret is not accepted any more. 0: no "
            "end.",
        ),
    ] = 0
    rsa_public_key: Annotated[
        str, Meta(description="The public key, as PEM text, of tokens signed with RS256, RS384 or RS512.")
    ] = ""
    ecdsa_public_key: Annotated[
        str, Meta(description="The public key, as PEM text, of tokens signed with ES256, ES384 or ES512.")
    ] = ""
    jwks_public_endpoint: Annotated[
        str,
        Meta(
            description="Where the set of public keys (JWKS) is: an https URL, an http URL of this machine, "
            "or a file (a path, or file://PATH)."
        ),
    ] = ""
    audience: Annotated[str, Meta(description="The aud claim that a token must have.")] = ""
    audience_regex: Annotated[
        str, Meta(description="A regular expression that must be found in the aud claim.")
    ] = ""
    issuer: Annotated[str, Meta(description="The iss claim that a token must have.")] = ""
    issuer_regex: Annotated[
        str, Meta(description="A regular expression that must be found in the iss claim.")
    ] = ""
    user_id_claim: Annotated[
        str, Meta(max_length=255, description="The claim that holds the user id. Empty: sub.")
    ] = ""


class SubscriptionTokenSettings(TokenSettings, frozen=True, kw_only=True):
    """Keys and rules for subscription tokens, if they have their own."""

    enabled: Annotated[
        bool,
        Meta(
            description="Subscription tokens are verified with the keys of this table, and no longer with "
            "those of client.token."
        ),
    ] = False


class PersonalChannel(Section, frozen=True, kw_only=True):
    """The channel of one user, subscribed to by the server."""

    enabled: Annotated[
        bool, Meta(description="Subscribe each user to a channel of its own when it connects.")
    ] = False
    personal_channel_namespace: Annotated[
        str, Meta(max_length=255, description="The namespace of these channels. Empty: none.")
    ] = ""
    single_connection: Annotated[
        bool,
        Meta(
            description="Close the older connections of a user that connects again. Needs presence in that "
            "namespace."
        ),
    ] = False


class ClientSettings(Section, frozen=True, kw_only=True):
    """Clients of the Centrifuge protocol: who may connect, and what one may do."""

    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Pages that may connect from a browser: patterns such as https://*.example.com, or * "
            "for all. None: no page may; clients that are no browser always may."
        ),
    ] = ()
    token: TokenSettings = TokenSettings()
    subscription_token: SubscriptionTokenSettings = SubscriptionTokenSettings()
    allow_anonymous_connect_without_token: Annotated[
        bool, Meta(description="Let clients without a token connect, as anonymous users.")
    ] = False
    disallow_anonymous_connection_tokens: Annotated[
        bool, Meta(description="Refuse connection tokens that name no user.")
    ] = False
    ping_interval: Annotated[
        Duration, Meta(ge=-1, le=3600, description="Time between two pings of the server. -1: no pings.")
    ] = 25.0
    pong_timeout: Annotated[
        Duration,
        Meta(
            ge=-1,
            le=3600,
            description="How long a client may take to answer a ping; shorter than the interval. -1: for "
            "ever.",
        ),
    ] = 8.0
    expired_close_delay: Annotated[
        Duration,
        Meta(
            ge=0, le=DAY_SECONDS, description="How long an expired connection may take to refresh its token."
        ),
    ] = 25.0
    expired_sub_close_delay: Annotated[
        Duration,
        Meta(
            ge=0,
            le=DAY_SECONDS,
            description="How long an expired subscription may take to refresh its token.",
        ),
    ] = 25.0
    stale_close_delay: Annotated[
        Duration,
        Meta(gt=0, le=3600, description="How long a connection may take to send its connect command."),
    ] = 10.0
    channel_limit: Annotated[int, Meta(ge=1, le=1_000_000, description="Channels of one connection.")] = 128
    queue_max_size: Annotated[
        int,
        Meta(
            ge=4096,
            le=1 << 30,
            description="Bytes that may wait for one client; a client that is slower than this is closed.",
        ),
    ] = 1 << 20
    presence_update_interval: Annotated[
        Duration,
        Meta(
            gt=0,
            le=59,
            description="How often the presence of a client, which expires after 60s, is renewed.",
        ),
    ] = 27.0
    concurrency: Annotated[
        int,
        Meta(
            ge=0,
            description="Commands of one connection that may be done at the same time. Spread does them in "
            "order, whatever this says.",
        ),
    ] = 0
    channel_position_check_delay: Annotated[
        Duration,
        Meta(
            gt=0,
            le=DAY_SECONDS,
            description="How often the position of a subscription that follows positions is compared with "
            "the history.",
        ),
    ] = 40.0
    connection_limit: Annotated[
        int, Meta(ge=0, description="Connections of the Centrifuge protocol to one shard. 0: no limit.")
    ] = 0
    user_connection_limit: Annotated[
        int, Meta(ge=0, description="Connections of one user to one shard. 0: no limit.")
    ] = 0
    connection_rate_limit: Annotated[
        int, Meta(ge=0, description="New connections to one shard in a second. 0: no limit.")
    ] = 0
    connect_include_server_time: Annotated[
        bool, Meta(description="Tell the time of the server in the answer to connect.")
    ] = False
    history_max_publication_limit: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Publications that one history command of a client is answered."),
    ] = 300
    recovery_max_publication_limit: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Publications that are recovered for one subscription at most."),
    ] = 300
    insecure_skip_token_signature_verify: Annotated[
        bool, Meta(description="Believe tokens without looking at their signature. For development only.")
    ] = False
    user_id_http_header: Annotated[
        str,
        Meta(
            max_length=255,
            description="An HTTP header that holds the user id, set by a proxy in front that removes it from "
            "requests of others.",
        ),
    ] = ""
    insecure: Annotated[
        bool,
        Meta(
            description="Let clients connect, subscribe and publish without permission. For development only."
        ),
    ] = False
    subscribe_to_user_personal_channel: PersonalChannel = PersonalChannel()

    commands_per_second: Annotated[
        float,
        Meta(
            ge=0,
            description="Spread's own. Commands of one connection; what is above is answered with error 111. "
            "0: no limit.",
        ),
    ] = 0
    user_commands_per_second: Annotated[
        float,
        Meta(
            ge=0,
            description="Spread's own. Commands of all connections of one user to one shard; what is above "
            "is answered with error 111. 0: no limit.",
        ),
    ] = 0
    errors_limit: Annotated[
        int,
        Meta(
            ge=0,
            description="Spread's own. Errors of the protocol, other than 100, that one connection may be "
            "answered in a minute; one more closes it with 3509. 0: no limit.",
        ),
    ] = 300
    max_unacknowledged_commands: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Spread's own. Commands of one connection that may wait to be done; above it the "
            "client is not read until some are.",
        ),
    ] = 256
