/* The load generator: connects clients, has some of them publish, checks every delivery, and measures.

   One thread, one epoll. What it is told on standard input, and what it answers on standard output, is described
   in protocol.py. It ends with its standard input, so that it never outlives who started it. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "generator.h"
#include "histogram.h"
#include "usage.h"

#define SECOND 1000000000ull

enum {
  PROBED_AT_ONCE = 256, /* rooms */
  WAITS_MAX = 8 << 20,  /* bytes that may wait on a publisher that is not read */
  SERVERS_MAX = 128     /* processes whose CPU is read */
};

/* Time between two probes of a room that has not heard all; after the last delivery of a run, for doubles. */
static const uint64_t PROBE_AGAIN = SECOND / 5, LINGER = SECOND / 20;

enum phase { IDLE, CONNECT, PROBE, WARM, MEASURE, DRAIN };

struct setup setup;
bool has_failed;
static enum phase phase;

/* What a member of a room has of one publisher. */
struct track {
  uint32_t newest;
  uint64_t seen; /* bit k: newest - k */
};
static struct track *tracks; /* [(room * members + member) * publishers + publisher] */
static uint32_t *sequences;  /* [room * publishers + publisher], the last one said */
static uint32_t publishers;  /* of one room */
static uint32_t fan_out;     /* deliveries of one message */

/* Probes: which members have heard one. */
static bool *has_heard;        /* [room * members + member] */
static uint32_t *deaf_members; /* [room] */
static uint32_t deaf_rooms;
static uint32_t probe_first, probe_end; /* the rooms that are probed now */
static uint64_t probe_next, probe_deadline;
static uint64_t probe_bytes, probe_count; /* of the frames that brought them */

/* A run. */
static uint32_t in_flight;
static double per_second;
static uint64_t run_started, measure_from, measure_until, drain_until, quiet_until, stall_after, last_delivery;
static uint64_t due_count, turn_count;
static int64_t expected, delivered, written_off;
static uint64_t doubled, reordered, misrouted, damaged, stalls, latest_start;
static struct histogram latency, connecting;
static uint64_t connect_started;

/* What had been counted when the measuring began. */
struct counts {
  uint64_t at, messages, deliveries, bytes, reads, cpu;
};
static struct counts counts, begun, ended;

/* The processes that are measured, and what they had used then. */
static int servers[SERVERS_MAX];
static uint32_t server_count;
struct used {
  struct usage servers[SERVERS_MAX];
  double busy, stolen;
};
static struct used used_begun, used_ended;

/* -- what is told ------------------------------------------------------------------------------------------- */

static void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void tell(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  putchar('\n');
  fflush(stdout);
}

void fail(const char *why, ...) {
  if (has_failed) return;
  char text[512];
  va_list arguments;
  va_start(arguments, why);
  vsnprintf(text, sizeof text, why, arguments);
  va_end(arguments);
  has_failed = true;
  phase = IDLE;
  tell("{\"event\":\"failed\",\"why\":\"%s\"}", text);
}

static uint64_t own_cpu(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static struct counts counted(uint64_t at) {
  struct counts taken = counts;
  taken.at = at;
  taken.reads = read_count;
  taken.cpu = own_cpu();
  return taken;
}

static void tell_histogram(const char *name, const struct histogram *of) {
  printf("\"%s\":{\"p50\":%" PRIu64 ",\"p90\":%" PRIu64 ",\"p99\":%" PRIu64 ",\"p999\":%" PRIu64 ",\"max\":%" PRIu64
         ",\"mean\":%.0f,\"count\":%" PRIu64 "}",
         name, histogram_quantile(of, .5), histogram_quantile(of, .9), histogram_quantile(of, .99),
         histogram_quantile(of, .999), of->largest, of->total ? of->sum / (double)of->total : 0, of->total);
}

/* -- deliveries --------------------------------------------------------------------------------------------- */

void took_to_connect(uint64_t nanoseconds) { histogram_add(&connecting, nanoseconds); }

static void heard_probe(uint64_t place, uint32_t room, size_t frame_bytes) {
  if (frame_bytes) {
    probe_bytes += frame_bytes;
    probe_count++;
  }
  if (has_heard[place]) return;
  has_heard[place] = true;
  if (!--deaf_members[room]) deaf_rooms--;
}

void heard_payload(struct client *client, const char *data, size_t size, size_t frame_bytes) {
  struct payload said;
  if (tracks == NULL || size != setup.payload_bytes || !payload_read(data, (uint32_t)size, &said)) {
    damaged++;
    return;
  }
  if (client->is_publisher || said.room >= setup.rooms || said.room % setup.groups != client->group ||
      said.publisher >= publishers) {
    misrouted++;
    return;
  }
  uint64_t place = (uint64_t)said.room * setup.members + client->member;
  if (said.publisher == client->member && setup.members_publish && !setup.has_echo) {
    misrouted++; /* its own */
    return;
  }
  if (said.is_probe) {
    heard_probe(place, said.room, frame_bytes);
    return;
  }
  struct track *track = &tracks[place * publishers + said.publisher];
  if (said.sequence > track->newest) {
    uint32_t ahead = said.sequence - track->newest;
    track->seen = (ahead < 64 ? track->seen << ahead : 0) | 1;
    track->newest = said.sequence;
  } else {
    uint32_t behind = track->newest - said.sequence;
    /* What is further behind cannot be told from a double; it is none that was waited for. */
    if (behind >= 64 || track->seen >> behind & 1) {
      doubled++;
      return;
    }
    track->seen |= 1ull << behind;
    reordered++;
  }
  delivered++;
  counts.deliveries++;
  counts.bytes += frame_bytes;
  last_delivery = heard_at;
  if (phase == MEASURE) histogram_add(&latency, heard_at > said.due ? heard_at - said.due : 0);
}

/* -- publishing --------------------------------------------------------------------------------------------- */

static struct client *publisher_of(uint32_t room, uint32_t publisher) {
  if (!setup.members_publish) return &clients[client_count - 1];
  return &clients[publisher * setup.groups + room % setup.groups];
}

/* The next message: one room after the other, and in each room one member after the other. */
static void publish(uint64_t due) {
  uint64_t turn = turn_count++;
  struct payload said = {.room = (uint32_t)(turn % setup.rooms), .due = due};
  said.publisher = (uint32_t)(turn / setup.rooms % publishers);
  said.sequence = ++sequences[said.room * publishers + said.publisher];
  struct client *client = publisher_of(said.room, said.publisher);
  if (client->out.end - client->out.start > WAITS_MAX) {
    fail("the server does not read its publisher: %u bytes wait", client->out.end - client->out.start);
    return;
  }
  say_payload(client, &said);
  counts.messages++;
  expected += fan_out;
}

static int64_t outstanding(void) { return expected - delivered - written_off; }

static void publish_what_fits(uint64_t at) {
  if (outstanding() > 0 && at > last_delivery + stall_after) {
    stalls++;
    written_off += outstanding();
    last_delivery = at;
  }
  while (!has_failed && outstanding() + fan_out <= (int64_t)in_flight * fan_out) publish(at);
}

static uint64_t due_at(uint64_t count) { return run_started + (uint64_t)((double)count * 1e9 / per_second); }

static void publish_what_is_due(uint64_t at) {
  for (uint64_t due; !has_failed && (due = due_at(due_count)) <= at; due_count++) {
    if (phase == MEASURE && at - due > latest_start) latest_start = at - due;
    publish(due);
  }
}

/* -- probes: whether all members hear their room, before anything counts ------------------------------------ */

static void begin_probing(uint64_t at) {
  phase = PROBE;
  probe_first = probe_end = 0;
  probe_next = at;
  probe_deadline = at + (uint64_t)(setup.timeout_seconds * 1e9);
}

static void probe(uint64_t at) {
  while (probe_first < probe_end && !deaf_members[probe_first]) probe_first++;
  if (probe_first == setup.rooms) {
    phase = IDLE;
    tell("{\"event\":\"heard\",\"frame_bytes\":%.2f}", probe_count ? (double)probe_bytes / (double)probe_count : 0);
    return;
  }
  if (probe_first == probe_end) {
    probe_end = probe_first + PROBED_AT_ONCE < setup.rooms ? probe_first + PROBED_AT_ONCE : setup.rooms;
    probe_next = at;
  }
  if (at < probe_next) return;
  if (at > probe_deadline) {
    fail("%u of %u channels have members that hear nothing", deaf_rooms, setup.rooms);
    return;
  }
  probe_next = at + PROBE_AGAIN;
  for (uint32_t room = probe_first; room < probe_end; room++) {
    if (!deaf_members[room]) continue;
    /* Two members, since without an echo one does not hear itself. */
    for (uint32_t publisher = 0; publisher < publishers && publisher < 2; publisher++) {
      struct payload said = {.is_probe = true, .room = room, .publisher = publisher, .due = at};
      say_payload(publisher_of(room, publisher), &said);
    }
  }
}

/* -- what the servers use ----------------------------------------------------------------------------------- */

static void read_usage(struct used *to) {
  for (uint32_t i = 0; i < server_count; i++)
    if (!usage_of(servers[i], &to->servers[i])) fail("there is no process %d", servers[i]);
  machine_usage(&to->busy, &to->stolen);
}

static void tell_usage(void) {
  printf("\"machine_busy\":%.2f,\"machine_stolen\":%.2f,\"cpu\":[", used_ended.busy - used_begun.busy,
         used_ended.stolen - used_begun.stolen);
  for (uint32_t i = 0; i < server_count; i++) {
    const struct usage *from = &used_begun.servers[i], *to = &used_ended.servers[i];
    printf("%s[%.9f,%.2f,%.2f]", i ? "," : "", to->total - from->total, to->user - from->user,
           to->system - from->system);
  }
  printf("],");
}

/* -- phases ------------------------------------------------------------------------------------------------- */

static void tell_result(void) {
  double seconds = (double)(ended.at - begun.at) / 1e9;
  printf("{\"event\":\"result\",\"seconds\":%.6f,\"messages\":%" PRIu64 ",\"deliveries\":%" PRIu64
         ",\"bytes\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"busy\":%.4f,\"lost\":%" PRId64 ",\"doubled\":%" PRIu64
         ",\"reordered\":%" PRIu64 ",\"misrouted\":%" PRIu64 ",\"damaged\":%" PRIu64 ",\"stalls\":%" PRIu64
         ",\"late_ns\":%" PRIu64 ",\"sent\":%" PRId64 ",",
         seconds, ended.messages - begun.messages, ended.deliveries - begun.deliveries, ended.bytes - begun.bytes,
         ended.reads - begun.reads, (double)(ended.cpu - begun.cpu) / 1e9 / seconds,
         expected - delivered > 0 ? expected - delivered : 0, doubled, reordered, misrouted, damaged, stalls,
         latest_start, expected);
  tell_usage();
  tell_histogram("latency_ns", &latency);
  tell("}");
}

static void turn_of_run(uint64_t at) {
  if (phase == WARM && at >= measure_from) {
    phase = MEASURE;
    read_usage(&used_begun);
    begun = counted(now());
    if (has_failed) return;
    tell("{\"event\":\"begin\"}");
  }
  if (phase == MEASURE && at >= measure_until) {
    phase = DRAIN;
    ended = counted(now());
    read_usage(&used_ended);
    if (has_failed) return;
    drain_until += now();
    quiet_until = 0;
  }
  if (phase == DRAIN) {
    if (expected - delivered > 0 && at < drain_until) return;
    if (!quiet_until) quiet_until = at + LINGER;
    if (at < quiet_until) return;
    phase = IDLE;
    tell_result();
  } else if (per_second > 0) {
    publish_what_is_due(at);
  } else {
    publish_what_fits(at);
  }
}

static void turn(uint64_t at) {
  if (phase == CONNECT && !clients_connect_more() && !has_failed) {
    printf("{\"event\":\"opened\",\"clients\":%u,\"seconds\":%.6f,", client_count,
           (double)(at - connect_started) / 1e9);
    tell_histogram("connect_ns", &connecting);
    tell("}");
    phase = IDLE;
    if (setup.has_probes) begin_probing(at);
  }
  if (phase == PROBE)
    probe(at);
  else if (phase >= WARM)
    turn_of_run(at);
}

/* When the next turn must be, though nothing comes; 0: whenever. */
static uint64_t next_turn(uint64_t at) {
  /* For what need not be exact: a time that stays the same for many turns, so that the timer is rarely set. */
  uint64_t tick = (at / (SECOND / 4) + 1) * (SECOND / 4);
  switch (phase) {
    case CONNECT:
      return tick;
    case PROBE:
      return probe_next;
    case WARM:
    case MEASURE: {
      uint64_t end = phase == WARM ? measure_from : measure_until;
      uint64_t next = per_second > 0 ? due_at(due_count) : tick;
      return next < end ? next : end;
    }
    case DRAIN:
      return quiet_until ? quiet_until : drain_until;
    default:
      return 0;
  }
}

static int timer = -1;

static void timer_ended(void) {
  uint64_t times;
  if (read(timer, &times, sizeof times) < 0) return;
}

static void set_timer(uint64_t when) {
  static uint64_t set;
  if (when == set) return;
  set = when;
  struct itimerspec spec = {.it_value = {(time_t)(when / SECOND), (long)(when % SECOND)}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &spec, NULL);
}

/* -- what it is told ---------------------------------------------------------------------------------------- */

/* The value of `name=` in a command, up to the next space; "" if it is not there. */
static const char *word(const char *line, const char *name) {
  static char value[4096];
  char wanted[64];
  int length = snprintf(wanted, sizeof wanted, " %s=", name);
  const char *found = strstr(line, wanted);
  snprintf(value, sizeof value, "%.*s", found ? (int)strcspn(found + length, " ") : 0, found ? found + length : "");
  return value;
}

static double number(const char *line, const char *name) { return atof(word(line, name)); }

static uint32_t whole(const char *line, const char *name) { return (uint32_t)strtoul(word(line, name), NULL, 10); }

static void free_tracks(void) {
  free(tracks), free(sequences), free(has_heard), free(deaf_members);
  tracks = NULL, sequences = NULL, has_heard = NULL, deaf_members = NULL;
}

static void command_open(const char *line) {
  static const char *formats[] = {"text", "json", "protobuf", "lines"};
  int format = 0;
  while (format < 4 && strcmp(word(line, "format"), formats[format])) format++;
  setup = (struct setup){.format = (enum format)format,
                         .rooms = whole(line, "rooms"),
                         .members = whole(line, "members"),
                         .groups = whole(line, "groups"),
                         .members_publish = whole(line, "members_publish"),
                         .has_echo = whole(line, "echo"),
                         .has_probes = whole(line, "probes"),
                         .payload_bytes = whole(line, "payload"),
                         .at_once = whole(line, "at_once"),
                         .sources = whole(line, "sources"),
                         .timeout_seconds = number(line, "timeout")};
  snprintf(setup.channel, sizeof setup.channel, "%s", word(line, "channel"));
  snprintf(setup.path, sizeof setup.path, "%s", word(line, "path"));
  snprintf(setup.token, sizeof setup.token, "%s", word(line, "token"));
  publishers = setup.members_publish ? setup.members : 1;
  fan_out = setup.members - (setup.members_publish && !setup.has_echo);
  if (format > 3 || !setup.rooms || setup.rooms > ROOMS_MAX || !setup.members ||
      (setup.has_probes && publishers > PUBLISHERS_MAX) || !setup.groups || setup.groups > setup.rooms ||
      setup.payload_bytes < PAYLOAD_MIN || setup.payload_bytes > PAYLOAD_MAX || !setup.at_once ||
      (format == TEXT && setup.groups != setup.rooms)) {
    fail("this cannot be opened: %.300s", line);
    return;
  }
  size_t places = (size_t)setup.rooms * setup.members;
  if (setup.has_probes) {
    tracks = zeroed(places * publishers, sizeof *tracks);
    has_heard = zeroed(places, sizeof *has_heard);
    sequences = zeroed((size_t)setup.rooms * publishers, sizeof *sequences);
    deaf_members = zeroed(setup.rooms, sizeof *deaf_members);
    for (uint32_t room = 0; room < setup.rooms; room++) deaf_members[room] = setup.members;
  }
  deaf_rooms = setup.rooms;
  probe_bytes = probe_count = turn_count = 0;
  histogram_clear(&connecting);
  char at[4096];
  snprintf(at, sizeof at, "%s", word(line, "at"));
  connect_started = now();
  if (clients_open(at, word(line, "publish_at"))) phase = CONNECT;
}

static void command_run(const char *line) {
  if (tracks == NULL || phase != IDLE || has_failed) {
    fail("there is nothing to run");
    return;
  }
  in_flight = whole(line, "in_flight");
  per_second = number(line, "per_second");
  stall_after = (uint64_t)(number(line, "stall") * 1e9);
  drain_until = (uint64_t)(number(line, "drain") * 1e9); /* counted from the end of the measuring */
  server_count = 0;
  char pids[4096];
  snprintf(pids, sizeof pids, "%s", word(line, "pids"));
  for (char *rest = pids, *each; (each = strsep(&rest, ",")) != NULL && server_count < SERVERS_MAX;)
    if (each[0]) servers[server_count++] = atoi(each);
  expected = delivered = written_off = 0;
  doubled = reordered = misrouted = damaged = stalls = latest_start = due_count = 0;
  histogram_clear(&latency);
  run_started = last_delivery = now();
  measure_from = run_started + (uint64_t)(number(line, "warm") * 1e9);
  measure_until = measure_from + (uint64_t)(number(line, "seconds") * 1e9);
  phase = WARM;
}

static void close_all(void) {
  if (clients != NULL) clients_close();
  free_tracks();
  has_failed = false;
  phase = IDLE;
}

static void obey(const char *line) {
  if (!strncmp(line, "open ", 5)) {
    close_all();
    command_open(line);
  } else if (!strncmp(line, "run ", 4)) {
    command_run(line);
  } else if (!strcmp(line, "close")) {
    close_all();
    tell("{\"event\":\"closed\"}");
  } else {
    fail("not a command: %.300s", line);
  }
}

static void commands_came(void) {
  static char lines[16384];
  static size_t size;
  ssize_t got = read(0, lines + size, sizeof lines - 1 - size);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) exit(0);
  size += (size_t)got;
  for (char *end; (end = memchr(lines, '\n', size)) != NULL;) {
    *end = 0;
    obey(lines);
    size -= (size_t)(end + 1 - lines);
    memmove(lines, end + 1, size);
  }
}

int main(void) {
  signal(SIGPIPE, SIG_IGN);
  for (int i = 0; i < PAYLOAD_MAX; i++) payload_letters[i] = (char)('a' + i % 26);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  watch(0, commands_came);
  watch(timer, timer_ended);
  for (;;) {
    uint64_t at = now();
    turn(at);
    /* The timer is exact to microseconds; epoll's own time limit is not. */
    uint64_t next = next_turn(at);
    set_timer(next);
    clients_turn(next && next <= at ? 0 : -1);
  }
}
