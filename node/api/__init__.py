"""The HTTP server API: what an application's backend asks of the cluster (section 17 of the protocol).

``params`` reads what is asked, ``methods`` does it, ``results`` says what came of it, and ``http`` is the way
there and back. Any shard can be asked, and answers for all.
"""

from spread.node.api.http import MAX_BODY_BYTES, api_paths, api_resource
from spread.node.api.methods import ApiError, Methods

__all__ = ["MAX_BODY_BYTES", "ApiError", "Methods", "api_paths", "api_resource"]
