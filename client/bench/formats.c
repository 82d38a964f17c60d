/* How a message looks in each of the protocols. What clients do step by step is here, too: a WebSocket is opened,
   then connect, then a subscription for each room of the client. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generator.h"

char payload_letters[PAYLOAD_MAX];

/* Subscriptions of one client under way at a time; a server may stop reading at some number. */
enum { SUBSCRIBES_AT_ONCE = 64 };
/* Above it, it is no answer of a server of ours. */
enum { MESSAGE_MAX = 1 << 20 };

static bool is_websocket(void) { return setup.format == JSON || setup.format == PROTOBUF; }

/* -- small pieces ------------------------------------------------------------------------------------------- */

static bool contains(const char *data, size_t size, const char *what) {
  return memmem(data, size, what, strlen(what)) != NULL;
}

/* For messages to people: what cannot be shown in a line of JSON becomes a dot. */
static const char *shown(const char *data, size_t size) {
  static char text[160];
  size_t length = size < sizeof text - 1 ? size : sizeof text - 1;
  for (size_t i = 0; i < length; i++)
    text[i] = data[i] < ' ' || data[i] > '~' || data[i] == '"' || data[i] == '\\' ? '.' : data[i];
  text[length] = 0;
  return text;
}

static uint32_t room_of(const struct client *client, uint32_t index) {
  return client->group + index * setup.groups;
}

static uint32_t rooms_of(const struct client *client) {
  return client->is_publisher ? 0 : (setup.rooms - client->group + setup.groups - 1) / setup.groups;
}

static int channel_of(char *to, size_t size, uint32_t room) {
  return snprintf(to, size, "%s%u", setup.channel, room);
}

/* -- WebSocket (RFC 6455) ----------------------------------------------------------------------------------- */

static void say_upgrade(struct client *client) {
  char request[1024];
  int size =
      snprintf(request, sizeof request,
               "GET %s HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
               "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c3ByZWFkLWJlbmNoLWtleQ==\r\n%s\r\n",
               setup.path, setup.format == PROTOBUF ? "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n" : "");
  append(client, request, (size_t)size);
}

/* One frame of a client, masked with a key that changes: the server shall have the work of a real client. */
static void say_frame(struct client *client, int opcode, char *data, size_t size) {
  static uint32_t key = 2463534242u;
  key ^= key << 13, key ^= key >> 17, key ^= key << 5;
  unsigned char head[8] = {(unsigned char)(0x80 | opcode), 0x80};
  size_t head_size = 2;
  if (size < 126) {
    head[1] |= (unsigned char)size;
  } else {
    head[1] |= 126;
    head[2] = (unsigned char)(size >> 8);
    head[3] = (unsigned char)size;
    head_size = 4;
  }
  unsigned char mask[4];
  memcpy(mask, &key, 4);
  memcpy(head + head_size, mask, 4);
  for (size_t i = 0; i < size; i++) data[i] ^= (char)mask[i & 3];
  append(client, head, head_size + 4);
  append(client, data, size);
}

/* -- commands of the Centrifuge protocol -------------------------------------------------------------------- */

static char command[PAYLOAD_MAX + 4096];

static size_t varint(char *to, uint64_t value) {
  size_t size = 0;
  for (; value > 127; value >>= 7) to[size++] = (char)(value | 128);
  to[size++] = (char)value;
  return size;
}

static size_t field(char *to, int number, const void *data, size_t size) {
  size_t used = varint(to, (uint64_t)number << 3 | 2);
  used += varint(to + used, size);
  memcpy(to + used, data, size);
  return used + size;
}

/* A command with one message in it, as connect = 4, subscribe = 5, publish = 7. */
static void say_protobuf(struct client *client, int number, const void *data, size_t size) {
  static char inner[PAYLOAD_MAX + 4096];
  inner[0] = 1 << 3;
  size_t used = 1 + varint(inner + 1, ++client->last_id);
  used += field(inner + used, number, data, size);
  size_t head = varint(command, used);
  memcpy(command + head, inner, used);
  say_frame(client, 2, command, head + used);
}

static void say_connect(struct client *client) {
  if (setup.format == PROTOBUF) {
    char request[sizeof setup.token + 8];
    size_t size = setup.token[0] ? field(request, 1, setup.token, strlen(setup.token)) : 0;
    say_protobuf(client, 4, request, size);
  } else {
    const char *quote = setup.token[0] ? "\"" : "";
    int size = snprintf(command, sizeof command, "{\"id\":%u,\"connect\":{%s%s%s%s}}", ++client->last_id,
                        setup.token[0] ? "\"token\":" : "", quote, setup.token, quote);
    say_frame(client, 1, command, (size_t)size);
  }
}

static void say_subscribe(struct client *client, uint32_t room) {
  char channel[160];
  int length = channel_of(channel, sizeof channel, room);
  if (setup.format == PROTOBUF) {
    char request[200];
    say_protobuf(client, 5, request, field(request, 1, channel, (size_t)length));
  } else {
    int size = snprintf(command, sizeof command, "{\"id\":%u,\"subscribe\":{\"channel\":\"%s\"}}",
                        ++client->last_id, channel);
    say_frame(client, 1, command, (size_t)size);
  }
}

/* -- what clients say --------------------------------------------------------------------------------------- */

static void say_joins(struct client *client) {
  uint32_t wanted = rooms_of(client);
  while (client->asked < wanted && client->asked < client->joined + SUBSCRIBES_AT_ONCE) {
    uint32_t room = room_of(client, client->asked++);
    if (setup.format != LINES) {
      say_subscribe(client, room);
      continue;
    }
    char line[] = "+0000\n";
    put_digits(line + 1, room, 4);
    append(client, line, 6);
  }
  if (client->joined == wanted) became_ready(client);
}

void say_hello(struct client *client) {
  if (is_websocket()) {
    client->state = UPGRADING;
    say_upgrade(client);
  } else if (setup.format == TEXT) {
    client->state = GREETING; /* it is the server that speaks first */
  } else {
    client->state = SUBSCRIBING;
    say_joins(client);
  }
}

void say_more(struct client *client) {
  if (client->state == UPGRADING) {
    client->state = GREETING;
    say_connect(client);
  } else if (client->state == GREETING && setup.format == TEXT) {
    if (setup.channel[0]) {
      char channel[160], line[192];
      channel_of(channel, sizeof channel, client->group); /* the publisher's group is 0 */
      append(client, line, (size_t)snprintf(line, sizeof line, "/join %s\n", channel));
    }
    became_ready(client); /* a join is not answered: whether one hears is seen by the probes */
  } else if (client->state == GREETING) {
    client->state = SUBSCRIBING;
    say_joins(client);
  } else if (client->state == SUBSCRIBING) {
    client->joined++;
    say_joins(client);
  }
}

void say_payload(struct client *client, const struct payload *said) {
  uint32_t size = setup.payload_bytes;
  if (!is_websocket()) {
    payload_write(command, size, said);
    command[size] = '\n';
    append(client, command, size + 1);
    return;
  }
  char channel[160];
  int length = channel_of(channel, sizeof channel, said->room);
  if (setup.format == PROTOBUF) {
    static char request[PAYLOAD_MAX + 512], payload[PAYLOAD_MAX];
    payload_write(payload, size, said);
    size_t used = field(request, 1, channel, (size_t)length);
    used += field(request + used, 2, payload, size);
    say_protobuf(client, 7, request, used);
    return;
  }
  int used = snprintf(command, sizeof command, "{\"id\":%u,\"publish\":{\"channel\":\"%s\",\"data\":\"",
                      ++client->last_id, channel);
  payload_write(command + used, size, said);
  memcpy(command + used + size, "\"}}", 3);
  say_frame(client, 1, command, (size_t)used + size + 3);
}

/* -- what clients hear -------------------------------------------------------------------------------------- */

/* A line of the text protocol, or of the bare loop; without its end. */
static void hear_line(struct client *client, const char *data, size_t size) {
  if (size == setup.payload_bytes && data[0] == '~') {
    heard_payload(client, data, size, size + 1);
  } else if (client->state == GREETING || client->state == SUBSCRIBING) {
    if (size > 6 && !memcmp(data, "error:", 6)) fail("the server says: %s", shown(data, size));
    say_more(client);
  } else {
    fail("a line that nobody said: %s", shown(data, size));
  }
}

static int hear_lines(struct client *client, const char *data, size_t size) {
  size_t used = 0;
  while (used < size && client->state != CLOSED) {
    const char *end = memchr(data + used, '\n', size - used);
    if (end == NULL) break;
    size_t length = (size_t)(end - data) - used;
    hear_line(client, data + used, length);
    used += length + 1;
  }
  return (int)used;
}

/* One message of JSON. Those of our servers are known by what is in them; no payload of ours has a quote. */
static void hear_json(struct client *client, const char *data, size_t size, size_t frame_bytes) {
  if (size == 2) { /* {}, a ping */
    char pong[] = "{}";
    say_frame(client, 1, pong, 2);
    return;
  }
  const char *found = memmem(data, size, "\"data\":\"~", 9);
  if (found != NULL) {
    found += 8;
    const char *end = memchr(found, '"', size - (size_t)(found - data));
    if (end != NULL) heard_payload(client, found, (size_t)(end - found), frame_bytes);
  } else if (contains(data, size, "\"error\":") || contains(data, size, "\"unsubscribe\":")) {
    fail("the server says: %s", shown(data, size));
  } else if ((client->state == GREETING && contains(data, size, "\"connect\":")) ||
             (client->state == SUBSCRIBING && contains(data, size, "\"subscribe\":"))) {
    say_more(client);
  } /* else the answer to a publish */
}

static void hear_jsons(struct client *client, const char *data, size_t size, size_t frame_bytes) {
  while (size && client->state != CLOSED) {
    const char *end = memchr(data, '\n', size);
    size_t length = end != NULL ? (size_t)(end - data) : size;
    if (length) hear_json(client, data, length, frame_bytes);
    frame_bytes = 0; /* counted with its first message */
    length += end != NULL;
    data += length, size -= length;
  }
}

/* A varint; the bytes it has, 0 if it is broken. */
static size_t take_varint(const char *data, size_t size, uint64_t *value) {
  *value = 0;
  for (size_t i = 0; i < size && i < 10; i++) {
    *value |= (uint64_t)(data[i] & 127) << (7 * i);
    if (!(data[i] & 128)) return i + 1;
  }
  return 0;
}

/* The first field of this number in a message, if it holds bytes: NULL, or where they are. */
static const char *find_field(const char *data, size_t size, unsigned number, size_t *found_size) {
  while (size) {
    uint64_t tag, value;
    size_t used = take_varint(data, size, &tag);
    if (!used) return NULL;
    data += used, size -= used;
    unsigned kind = tag & 7;
    size_t length = kind == 1 ? 8 : kind == 5 ? 4 : 0;
    if (kind == 0 || kind == 2) {
      used = take_varint(data, size, &value);
      if (!used) return NULL;
      data += used, size -= used;
      if (kind == 2) length = (size_t)value;
    }
    if (length > size) return NULL;
    if (kind == 2 && tag >> 3 == number) {
      *found_size = length;
      return data;
    }
    data += length, size -= length;
  }
  return NULL;
}

/* One Reply: error = 2, push = 4 (unsubscribe = 7, pub = 4 (data = 4)), connect = 5, subscribe = 6. */
static void hear_protobuf(struct client *client, const char *data, size_t size, size_t frame_bytes) {
  size_t push_size, inner_size;
  if (!size) {
    char pong[] = "";
    say_frame(client, 2, pong, 1); /* a length of 0: an empty command */
    return;
  }
  const char *push = find_field(data, size, 4, &push_size);
  if (push != NULL) {
    const char *inner = find_field(push, push_size, 4, &inner_size);
    if (inner == NULL) {
      if (find_field(push, push_size, 7, &inner_size) != NULL) fail("the server has ended a subscription");
      return;
    }
    const char *found = find_field(inner, inner_size, 4, &inner_size);
    if (found != NULL) heard_payload(client, found, inner_size, frame_bytes);
    return;
  }
  const char *error = find_field(data, size, 2, &inner_size);
  if (error != NULL) {
    const char *text = find_field(error, inner_size, 2, &inner_size);
    fail("the server says: %s", text != NULL ? shown(text, inner_size) : "an error");
  } else if ((client->state == GREETING && find_field(data, size, 5, &inner_size) != NULL) ||
             (client->state == SUBSCRIBING && find_field(data, size, 6, &inner_size) != NULL))
    say_more(client);
}

static void hear_protobufs(struct client *client, const char *data, size_t size, size_t frame_bytes) {
  while (size && client->state != CLOSED) {
    uint64_t length;
    size_t used = take_varint(data, size, &length);
    if (!used || length > size - used) {
      fail("what the server sends is no Protobuf of the protocol");
      return;
    }
    hear_protobuf(client, data + used, (size_t)length, frame_bytes);
    frame_bytes = 0;
    used += (size_t)length;
    data += used, size -= used;
  }
}

static int hear_upgrade(struct client *client, const char *data, size_t size) {
  const char *end = memmem(data, size, "\r\n\r\n", 4);
  if (end == NULL) return 0;
  if (size < 12 || memcmp(data, "HTTP/1.1 101", 12)) {
    const char *line_end = memchr(data, '\r', size);
    fail("no WebSocket at %s: %s", setup.path, shown(data, (size_t)(line_end - data)));
    return -1;
  }
  say_more(client);
  return (int)(end - data) + 4;
}

static int hear_frames(struct client *client, const char *data, size_t size) {
  size_t used = 0;
  while (size - used >= 2 && client->state != CLOSED) {
    const unsigned char *frame = (const unsigned char *)data + used;
    size_t left = size - used, head = 2, length = frame[1] & 127;
    if (length == 126) {
      if (left < 4) break;
      length = (size_t)frame[2] << 8 | frame[3];
      head = 4;
    } else if (length == 127) {
      if (left < 10) break;
      length = 0;
      for (int i = 2; i < 10; i++) length = length << 8 | frame[i];
      head = 10;
    }
    if (length > MESSAGE_MAX || frame[1] & 128) {
      fail("what the server sends is no WebSocket");
      return -1;
    }
    if (left < head + length) break;
    char *body = (char *)frame + head;
    int opcode = frame[0] & 15;
    used += head + length;
    if (frame[0] == 0x81)
      hear_jsons(client, body, length, head + length);
    else if (frame[0] == 0x82)
      hear_protobufs(client, body, length, head + length);
    else if (opcode == 9)
      say_frame(client, 10, body, length);
    else if (opcode == 8 && length >= 2)
      fail("the server closes with %d %s", (unsigned char)body[0] << 8 | (unsigned char)body[1],
           shown(body + 2, length - 2));
    else if (opcode != 10)
      fail("the server sends a frame in parts, or compressed, which nobody asked for");
  }
  return (int)used;
}

int hear(struct client *client, const char *data, size_t size) {
  if (!is_websocket()) return hear_lines(client, data, size);
  int used = 0;
  if (client->state == UPGRADING) {
    used = hear_upgrade(client, data, size);
    if (used <= 0) return used;
  }
  int more = hear_frames(client, data + used, size - (size_t)used);
  return more < 0 ? more : used + more;
}
