/* What a message of the benchmark says, and how it is checked.

     offset  bytes
          0      1  '~'
          1      1  'm' a message, 'p' a probe, which is not counted
          2      4  room
          6      2  publisher: 0, or which member of the room
          8      6  sequence: 1, 2, 3 ... of this publisher in this room
         14     12  when it was due, nanoseconds of CLOCK_MONOTONIC
         26      .  letters a to z, over and over, up to the size agreed on

   Numbers are in digits of 5 bits, '0' to 'O', the highest first: they stand in a string of JSON as they are,
   and are read without a table. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { PAYLOAD_HEAD = 26, PAYLOAD_MIN = 32, PAYLOAD_MAX = 60000 };

/* What 4, 2 and 6 digits can hold. */
enum { ROOMS_MAX = 1 << 20, PUBLISHERS_MAX = 1 << 10 };

struct payload {
  bool is_probe;
  uint32_t room, publisher, sequence;
  uint64_t due;
};

/* The letters, enough for the longest payload. */
extern char payload_letters[PAYLOAD_MAX];

static inline void put_digits(char *to, uint64_t value, int count) {
  while (count--) {
    to[count] = (char)('0' + (value & 31));
    value >>= 5;
  }
}

static inline uint64_t take_digits(const char *from, int count, unsigned *wrong) {
  uint64_t value = 0;
  for (int i = 0; i < count; i++) {
    unsigned digit = (unsigned char)from[i] - (unsigned)'0';
    *wrong |= digit & ~31u;
    value = value << 5 | (digit & 31);
  }
  return value;
}

static inline void payload_write(char *to, uint32_t size, const struct payload *said) {
  to[0] = '~';
  to[1] = said->is_probe ? 'p' : 'm';
  put_digits(to + 2, said->room, 4);
  put_digits(to + 6, said->publisher, 2);
  put_digits(to + 8, said->sequence, 6);
  put_digits(to + 14, said->due, 12);
  memcpy(to + PAYLOAD_HEAD, payload_letters, size - PAYLOAD_HEAD);
}

/* False: it is not what a publisher of ours wrote. */
static inline bool payload_read(const char *from, uint32_t size, struct payload *said) {
  unsigned wrong = 0;
  said->is_probe = from[1] == 'p';
  said->room = (uint32_t)take_digits(from + 2, 4, &wrong);
  said->publisher = (uint32_t)take_digits(from + 6, 2, &wrong);
  said->sequence = (uint32_t)take_digits(from + 8, 6, &wrong);
  said->due = take_digits(from + 14, 12, &wrong);
  return !wrong && from[0] == '~' && (from[1] == 'm' || from[1] == 'p') &&
         !memcmp(from + PAYLOAD_HEAD, payload_letters, size - PAYLOAD_HEAD);
}
