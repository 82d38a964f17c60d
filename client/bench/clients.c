/* The connections: opened a few at a time, read when there is something, written once a turn. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "generator.h"

enum { ADDRESSES_MAX = 64, EVENTS = 512, READ_BYTES = 1 << 18, WATCHES_MAX = 4 };

struct client *clients;
uint32_t client_count, ready_count, closed_count;
uint64_t read_count, heard_at;

struct address {
  struct sockaddr_storage where;
  socklen_t size;
};
static struct address addresses[ADDRESSES_MAX], publish_addresses[ADDRESSES_MAX];
static uint32_t address_count, publish_address_count;

static int epoll = -1;
static struct client **late; /* those with something to write at the end of the turn */
static uint32_t late_count, started_count, under_way;
static uint32_t generation; /* of the clients: all of them are closed before others are opened */
static uint64_t deadline;

uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void *zeroed(size_t count, size_t size) {
  void *made = calloc(count ? count : 1, size);
  if (made == NULL) {
    fputs("generator: out of memory\n", stderr);
    exit(1);
  }
  return made;
}

/* -- bytes that wait ---------------------------------------------------------------------------------------- */

static void bytes_add(struct bytes *to, const void *data, size_t size) {
  if (to->end + size > to->room) {
    uint32_t waiting = to->end - to->start, room = 256;
    while (room < waiting + size) room *= 2;
    char *moved = zeroed(1, room);
    if (waiting) memcpy(moved, to->data + to->start, waiting);
    free(to->data);
    *to = (struct bytes){moved, 0, waiting, room};
  }
  memcpy(to->data + to->end, data, size);
  to->end += (uint32_t)size;
}

/* What a publisher writes over and over keeps its memory; thousands of others do not. */
static void bytes_clear(struct bytes *of) {
  of->start = of->end = 0;
  if (of->room <= 4096) return;
  free(of->data);
  *of = (struct bytes){0};
}

static void bytes_free(struct bytes *of) {
  free(of->data);
  *of = (struct bytes){0};
}

void append(struct client *client, const void *data, size_t size) {
  bytes_add(&client->out, data, size);
  if (!client->is_late) {
    client->is_late = true;
    late[late_count++] = client;
  }
}

/* -- addresses ---------------------------------------------------------------------------------------------- */

/* "127.0.0.1:8007,[::1]:8007": numbers only, names were looked up before. How many; 0 if one is none. */
static uint32_t parse_addresses(const char *text, struct address *to) {
  char copy[4096];
  snprintf(copy, sizeof copy, "%s", text);
  uint32_t count = 0;
  for (char *rest = copy, *each; (each = strsep(&rest, ",")) != NULL; count++) {
    char *port = strrchr(each, ':');
    if (port == NULL || count == ADDRESSES_MAX) return 0;
    *port++ = 0;
    if (each[0] == '[' && port[-2] == ']') {
      port[-2] = 0;
      each++;
    }
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found;
    if (getaddrinfo(each, port, &hints, &found)) return 0;
    memcpy(&to[count].where, found->ai_addr, found->ai_addrlen);
    to[count].size = found->ai_addrlen;
    freeaddrinfo(found);
  }
  return count;
}

/* -- one client --------------------------------------------------------------------------------------------- */

static void wait_for(struct client *client, bool write) {
  if (client->wants_write == write) return;
  client->wants_write = write;
  struct epoll_event event = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = client};
  epoll_ctl(epoll, EPOLL_CTL_MOD, client->fd, &event);
}

static void client_close(struct client *client) {
  if (client->state == CLOSED) return;
  /* A reset: thousands of ports in TIME_WAIT would be missing in the next run. */
  struct linger at_once = {.l_onoff = 1};
  setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close(client->fd);
  if (client->state == READY)
    ready_count--;
  else
    under_way--;
  client->state = CLOSED;
  closed_count++;
  bytes_free(&client->in);
  bytes_free(&client->out);
}

static void client_lost(struct client *client, const char *why) {
  fail("client %u: %s %s", (unsigned)(client - clients), client->state == READY ? "lost:" : "not let in:", why);
  client_close(client);
}

static void client_connect(struct client *client) {
  uint32_t number = (uint32_t)(client - clients);
  const struct address *to = client->is_publisher ? &publish_addresses[number % publish_address_count]
                                                  : &addresses[(client->member + client->group) % address_count];
  int one = 1;
  client->began = now();
  client->fd = socket(to->where.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (client->fd < 0) {
    fail("client %u: no socket: %s", number, strerror(errno));
    return;
  }
  setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  under_way++;
  client->state = CONNECTING;
  if (setup.sources > 1 && to->where.ss_family == AF_INET) {
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(0x7f000001u + number % setup.sources)};
    setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(client->fd, (struct sockaddr *)&from, sizeof from)) {
      client_lost(client, strerror(errno));
      return;
    }
  }
  if (connect(client->fd, (const struct sockaddr *)&to->where, to->size) && errno != EINPROGRESS) {
    client_lost(client, strerror(errno));
    return;
  }
  client->wants_write = true;
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = client};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event)) client_lost(client, strerror(errno));
}

void became_ready(struct client *client) {
  if (client->state == READY) return;
  client->state = READY;
  ready_count++;
  under_way--;
  took_to_connect(now() - client->began);
}

static void client_write(struct client *client) {
  struct bytes *out = &client->out;
  while (out->start < out->end) {
    ssize_t sent = send(client->fd, out->data + out->start, out->end - out->start, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) break;
    if (sent < 0) {
      client_lost(client, strerror(errno));
      return;
    }
    out->start += (uint32_t)sent;
  }
  wait_for(client, out->start < out->end);
  if (out->start == out->end) bytes_clear(out);
}

static void client_read(struct client *client) {
  static char input[READ_BYTES];
  struct bytes *in = &client->in;
  uint32_t kept = in->end - in->start;
  if (kept >= READ_BYTES / 2) {
    client_lost(client, "a message without an end");
    return;
  }
  if (kept) memcpy(input, in->data + in->start, kept);
  ssize_t got = recv(client->fd, input + kept, READ_BYTES - kept, 0);
  read_count++;
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    client_lost(client, got ? strerror(errno) : "the server has closed the connection");
    return;
  }
  heard_at = now();
  size_t size = kept + (size_t)got;
  int used = hear(client, input, size);
  if (used < 0) client_close(client);
  if (client->state == CLOSED) return;
  bytes_clear(in);
  if ((size_t)used < size) bytes_add(in, input + used, size - (size_t)used);
}

static void client_event(struct client *client, uint32_t events) {
  if (client->state == CLOSED) return;
  if (client->state == CONNECTING) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
      client_lost(client, strerror(error));
      return;
    }
    say_hello(client);
  }
  if (events & EPOLLOUT) client_write(client);
  if (client->state != CLOSED && events & (EPOLLIN | EPOLLERR | EPOLLHUP)) client_read(client);
}

/* -- all of them -------------------------------------------------------------------------------------------- */

bool clients_open(const char *at, const char *publish_at) {
  address_count = parse_addresses(at, addresses);
  publish_address_count = parse_addresses(publish_at, publish_addresses);
  if (!address_count || !publish_address_count) {
    fail("not an address: %s", address_count ? publish_at : at);
    return false;
  }
  uint32_t members = setup.members * setup.groups;
  client_count = members + !setup.members_publish;
  clients = zeroed(client_count, sizeof *clients);
  late = zeroed(client_count, sizeof *late);
  late_count = started_count = under_way = ready_count = closed_count = 0;
  for (uint32_t i = 0; i < client_count; i++) {
    clients[i].is_publisher = i >= members;
    if (i < members) {
      clients[i].member = i / setup.groups;
      clients[i].group = i % setup.groups;
    }
  }
  deadline = now() + (uint64_t)(setup.timeout_seconds * 1e9);
  return true;
}

bool clients_connect_more(void) {
  if (ready_count == client_count) return false;
  while (!has_failed && started_count < client_count && under_way < setup.at_once)
    client_connect(&clients[started_count++]);
  if (now() > deadline)
    fail("only %u of %u clients were let in within %g s", ready_count, client_count, setup.timeout_seconds);
  return !has_failed;
}

void clients_close(void) {
  for (uint32_t i = 0; i < started_count; i++) client_close(&clients[i]);
  free(clients);
  free(late);
  generation++;
  clients = NULL;
  late = NULL;
  client_count = started_count = ready_count = late_count = 0;
}

static struct {
  int fd;
  void (*ready)(void);
} watches[WATCHES_MAX];
static int watch_count;

void watch(int fd, void (*ready)(void)) {
  if (epoll < 0) epoll = epoll_create1(EPOLL_CLOEXEC);
  watches[watch_count].fd = fd;
  watches[watch_count].ready = ready;
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = &watches[watch_count++]};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) {
    perror("generator: epoll_ctl");
    exit(1);
  }
}

void clients_turn(int epoll_timeout_ms) {
  static struct epoll_event events[EVENTS];
  /* What was said since the last turn, in one send() for each client. */
  for (uint32_t i = 0; i < late_count; i++) {
    late[i]->is_late = false;
    if (late[i]->state > CONNECTING) client_write(late[i]);
  }
  late_count = 0;
  int count = epoll_wait(epoll, events, EVENTS, epoll_timeout_ms);
  for (int i = 0; i < count; i++) {
    char *which = events[i].data.ptr;
    if (which >= (char *)watches && which < (char *)(watches + WATCHES_MAX)) {
      uint32_t before = generation;
      ((void (*)(void))watches[(which - (char *)watches) / (long)sizeof *watches].ready)();
      if (generation != before) return; /* the rest are events of clients that are gone */
    } else {
      client_event((struct client *)which, events[i].events);
    }
  }
}
