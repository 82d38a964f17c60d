/* The load generator: what its parts share. What it is told and what it answers: protocol.py.

     formats.c     how a message looks in each of the protocols; no sockets
     clients.c     the connections: opened, read, written
     generator.c   what is measured: publishes, checks and counts */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "payload.h"

/* LINES is spoken by the bare loop (loop.c) alone. */
enum format { TEXT, JSON, PROTOBUF, LINES };

enum state {
  CLOSED,
  CONNECTING,
  UPGRADING,   /* a WebSocket is being opened */
  GREETING,    /* waits for the greeting, or for the answer to connect */
  SUBSCRIBING, /* waits for the answers to its subscriptions */
  READY
};

/* A growing piece of memory; nothing is held while it is empty, for there are many clients. */
struct bytes {
  char *data;
  uint32_t start, end, room;
};

struct client {
  int fd;
  uint8_t state;
  bool is_publisher;         /* has a connection to publish on, and receives nothing */
  bool wants_write, is_late; /* late: it has something to write at the end of this turn */
  uint32_t member, group;    /* is this member of the rooms group, group + groups, group + 2 groups ... */
  uint32_t asked, joined;    /* how many of its rooms it has asked for, and is in */
  uint32_t last_id;          /* of its commands */
  uint64_t began;
  struct bytes in, out;
};

/* As `open` said. */
struct setup {
  enum format format;
  uint32_t rooms, members, groups;
  bool members_publish; /* else one publisher of its own */
  bool has_echo;        /* a member gets what it published, too */
  bool has_probes;
  uint32_t payload_bytes;
  uint32_t at_once; /* connections under way at a time */
  uint32_t sources; /* source addresses */
  double timeout_seconds;
  char channel[128]; /* what the name of a channel begins with; with TEXT it may be empty: nobody joins one */
  char path[256];
  char token[2048];
};
extern struct setup setup;

/* formats.c. All of it writes to client->out; nothing is sent before the end of the turn. */

void say_hello(struct client *client); /* as soon as the connection is there */
void say_more(struct client *client);  /* the next step on the way to READY */
void say_payload(struct client *client, const struct payload *said);
int hear(struct client *client, const char *data, size_t size); /* bytes that were used up; -1: it failed */

/* clients.c */

extern struct client *clients;
extern uint32_t client_count, ready_count, closed_count;
extern uint64_t read_count;
extern uint64_t heard_at; /* when what is being read now was read */

uint64_t now(void);
void *zeroed(size_t count, size_t size);
void append(struct client *client, const void *data, size_t size);
void became_ready(struct client *client);
bool clients_open(const char *at, const char *publish_at); /* false: fail() was called */
bool clients_connect_more(void);
void clients_close(void);
void clients_turn(int epoll_timeout_ms);
void watch(int fd, void (*ready)(void)); /* call it when fd can be read */

/* generator.c */

void heard_payload(struct client *client, const char *data, size_t size, size_t frame_bytes);
void took_to_connect(uint64_t nanoseconds);
/* The run is over, for this reason; only the first is told. */
void fail(const char *why, ...) __attribute__((format(printf, 1, 2)));
extern bool has_failed;
