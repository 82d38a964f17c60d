"""What is written twice, in C and in Python, is the same: payloads and histograms."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from spread.client.bench import compiler
from spread.client.bench.compiler import CannotCompile, find_compiler
from spread.client.bench.histogram import Histogram
from spread.client.bench.payload import MIN_BYTES, Payload, read, written

PROGRAM = """
#include <stdio.h>
#include "histogram.h"
#include "payload.h"
char payload_letters[PAYLOAD_MAX];
static struct histogram histogram;
int main(void) {
  for (int i = 0; i < PAYLOAD_MAX; i++) payload_letters[i] = (char)('a' + i % 26);
  struct payload said = {true, 1000000, 1023, 123456789, 1234567890123456}, read;
  char text[100];
  payload_write(text, 100, &said);
  bool is_read = payload_read(text, 100, &read);
  printf("%.100s %d %u %u %u %llu\\n", text, is_read && read.is_probe, read.room, read.publisher,
         read.sequence, (unsigned long long)read.due);
  unsigned long long value;
  while (scanf("%llu", &value) == 1) histogram_add(&histogram, value);
  double shares[] = {0, .1, .5, .9, .99, .999, 1};
  for (int i = 0; i < 7; i++) printf("%llu ", (unsigned long long)histogram_quantile(&histogram, shares[i]));
  return 0;
}
"""
SHARES = (0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)


@pytest.fixture(scope="module")
def values() -> list[int]:
    source = random.Random(17)
    return [int(10 ** source.uniform(0, 12)) for _ in range(5000)] + [0, 127, 128, 255, 256, 257, 2**62]


@pytest.fixture(scope="module")
def told_by_c(values: list[int], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    try:
        cc = find_compiler(os.environ)
    except CannotCompile as error:  # pragma: no cover
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("twins")
    (directory / "twins.c").write_text(PROGRAM)
    include = Path(compiler.__file__).parent
    program = directory / "twins"
    command = [
        cc,
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{include}",
        "-o",
        program,
        directory / "twins.c",
    ]
    subprocess.run(command, check=True, timeout=60)
    done = subprocess.run(
        [program], input=" ".join(map(str, values)), capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def test_payloads(told_by_c: list[str]) -> None:
    said = Payload(True, 1_000_000, 1023, 123_456_789, 1_234_567_890_123_456)
    text, *numbers = told_by_c[0].split()
    assert text.encode() == written(said, 100)
    assert numbers == ["1", "1000000", "1023", "123456789", "1234567890123456"]
    assert read(text.encode()) == said


def test_histograms(told_by_c: list[str], values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert [int(word) for word in told_by_c[1].split()] == [histogram.quantile(share) for share in SHARES]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"~m" + b"0" * 10,
        b"~x" + written(Payload(False, 1, 2, 3, 4), 50)[2:],
        written(Payload(False, 1, 2, 3, 4), 50).replace(b"a", b"b"),
        b"~mZ" + written(Payload(False, 1, 2, 3, 4), 50)[3:],
    ],
)
def test_what_is_no_payload(data: bytes) -> None:
    assert read(data) is None


def test_the_smallest_payload() -> None:
    said = Payload(False, 0, 0, 1, 2)
    assert read(written(said, MIN_BYTES)) == said


def test_quantiles_are_exact_to_a_hundredth(values: list[int]) -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0
    assert histogram.mean == 0
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    for share in SHARES[1:]:
        exact = ordered[max(0, round(share * len(values) + 0.4999) - 1)]
        assert abs(histogram.quantile(share) - exact) <= exact / 100
    assert histogram.quantile(1.0) == histogram.largest == 2**62
    assert histogram.mean == pytest.approx(sum(values) / len(values))
