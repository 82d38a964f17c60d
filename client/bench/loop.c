/* The bare loop: the least that a broadcast can cost with one send() a delivery.

     loop [--batched] [--echo]

   Prints "ready PORT" and serves until its standard input ends. A client enters a room with a line "+0000" (the
   room, as in payload.h) and is answered "ok"; any other line is a message, whose room stands in it: it is sent to
   each other client of the room, with --echo to the sender too, one send() a client and nothing else. With
   --batched, all whole lines of one room that one read brought go out in one send(). */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "payload.h"

enum { EVENTS = 256, READ_BYTES = 1 << 18, ACCEPTS_AT_ONCE = 64, BACKLOG = 4096 };

struct client {
  int fd;
  uint32_t kept; /* the beginning of a line whose end has not come */
  char *rest;
};

struct room {
  struct client **members;
  uint32_t count, space;
};

static struct room *rooms;
static uint32_t room_count;
static bool is_batched, has_echo;
static int epoll;

static void die(const char *what) {
  fprintf(stderr, "loop: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void *grown(void *memory, size_t size) {
  memory = realloc(memory, size);
  if (memory == NULL) die("memory");
  return memory;
}

static struct room *room_at(uint32_t number) {
  if (number >= room_count) {
    uint32_t count = number + 1 > 2 * room_count ? number + 1 : 2 * room_count;
    rooms = grown(rooms, count * sizeof *rooms);
    memset(rooms + room_count, 0, (count - room_count) * sizeof *rooms);
    room_count = count;
  }
  return &rooms[number];
}

static void enter(struct client *client, uint32_t number) {
  struct room *room = room_at(number);
  if (room->count == room->space) {
    room->space = room->space ? 2 * room->space : 4;
    room->members = grown(room->members, room->space * sizeof *room->members);
  }
  room->members[room->count++] = client;
}

/* All clients come and go together, and rarely: every room is looked at. */
static void leave(struct client *client) {
  for (uint32_t number = 0; number < room_count; number++) {
    struct room *room = &rooms[number];
    for (uint32_t i = 0; i < room->count; i++)
      if (room->members[i] == client) room->members[i--] = room->members[--room->count];
  }
  close(client->fd);
  free(client->rest);
  free(client);
}

/* Blocks while the client's buffer is full: the generator reads all of its sockets, whatever it waits for. */
static void send_all(int fd, const char *data, size_t size) {
  while (size) {
    ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return; /* gone: its end is read later */
    data += sent, size -= (size_t)sent;
  }
}

static void spread(const struct client *from, uint32_t number, const char *data, size_t size) {
  if (number >= room_count) return;
  const struct room *room = &rooms[number];
  for (uint32_t i = 0; i < room->count; i++)
    if (has_echo || room->members[i] != from) send_all(room->members[i]->fd, data, size);
}

/* Whole lines. */
static void obey(struct client *client, const char *data, size_t size) {
  const char *end = data + size, *begun = NULL; /* begun: lines of the room `number`, not sent yet */
  uint32_t number = 0;
  while (data < end) {
    const char *next = (const char *)memchr(data, '\n', (size_t)(end - data)) + 1;
    bool enters = data[0] == '+';
    unsigned wrong = next - data < (enters ? 6 : PAYLOAD_MIN);
    uint32_t room = wrong ? 0 : (uint32_t)take_digits(data + (enters ? 1 : 2), 4, &wrong);
    if (wrong) {
      errno = EPROTO;
      die("a line");
    }
    if (begun != NULL && (enters || room != number || !is_batched)) {
      spread(client, number, begun, (size_t)(data - begun));
      begun = NULL;
    }
    if (enters) {
      enter(client, room);
      send_all(client->fd, "ok\n", 3);
    } else if (begun == NULL) {
      begun = data;
      number = room;
    }
    data = next;
  }
  if (begun != NULL) spread(client, number, begun, (size_t)(end - begun));
}

static void hear(struct client *client) {
  static char input[READ_BYTES];
  if (client->kept) memcpy(input, client->rest, client->kept);
  ssize_t got = recv(client->fd, input + client->kept, READ_BYTES - client->kept, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    leave(client);
    return;
  }
  size_t size = client->kept + (size_t)got;
  const char *last = memrchr(input, '\n', size);
  size_t whole = last != NULL ? (size_t)(last - input) + 1 : 0;
  if (size - whole == READ_BYTES) {
    errno = EMSGSIZE;
    die("a line");
  }
  obey(client, input, whole);
  client->kept = (uint32_t)(size - whole);
  if (client->kept) {
    client->rest = grown(client->rest, client->kept);
    memcpy(client->rest, input + whole, client->kept);
  }
}

static void watch(int fd, void *what) {
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void let_in(int listener) {
  for (int i = 0; i < ACCEPTS_AT_ONCE; i++) {
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)) return;
    if (fd < 0) die("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct client *client = grown(NULL, sizeof *client);
    *client = (struct client){.fd = fd};
    watch(fd, client);
  }
}

static int listening(void) {
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof where;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&where, size) || listen(listener, BACKLOG) ||
      getsockname(listener, (struct sockaddr *)&where, &size))
    die("listen");
  printf("ready %d\n", ntohs(where.sin_port));
  fflush(stdout);
  return listener;
}

int main(int count, char **arguments) {
  static struct epoll_event events[EVENTS];
  static char is_input, is_listener;
  for (int i = 1; i < count; i++) {
    is_batched |= !strcmp(arguments[i], "--batched");
    has_echo |= !strcmp(arguments[i], "--echo");
  }
  signal(SIGPIPE, SIG_IGN);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0) die("epoll");
  watch(0, &is_input);
  int listener = listening();
  watch(listener, &is_listener);
  for (;;) {
    int ready = epoll_wait(epoll, events, EVENTS, -1);
    for (int i = 0; i < ready; i++) {
      void *what = events[i].data.ptr;
      if (what == &is_input) return 0;
      if (what == &is_listener)
        let_in(listener);
      else
        hear(what);
    }
  }
}
