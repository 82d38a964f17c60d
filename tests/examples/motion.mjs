// Run by test_page.py with the path of motion.js.
import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const { ANGLE, DELAY_MS, direction, hue, ranked, Timeline, turned, wrongWith, X, Y } =
  await import(pathToFileURL(process.argv[2]));

const player = (id, x, y, angle = 0) => [id, id, x, y, angle, 100, 0, 0];
const state = (tick, players, more = {}) => ({ tick, time: tick * 50, epoch: 1, players, bullets: [], events: [], ...more });
const close = (value, wanted) => assert.ok(Math.abs(value - wanted) < 1e-9, `${value} is not ${wanted}`);

{ // Between two states, however late they came.
  const timeline = new Timeline();
  assert.equal(timeline.at(0), null);
  timeline.add(state(10, [player("a", 0, 0)]), 1000); // its time is 500: half a second behind our clock
  timeline.add(state(11, [player("a", 10, 20)]), 1050);
  const seen = timeline.at(1025 + DELAY_MS).players[0];
  close(seen[X], 5);
  close(seen[Y], 10);
  close(timeline.at(1050 + DELAY_MS).players[0][X], 10);
  close(timeline.at(9000).players[0][X], 10); // nothing newer: it stands still
  timeline.add(state(12, [player("a", 20, 20)]), 1130); // 30 ms late, which hardly moves the clock
  assert.ok(Math.abs(timeline.at(1075 + DELAY_MS).players[0][X] - 15) < 0.2);
}
{ // Who comes or goes, who is placed anew, and what turns.
  const timeline = new Timeline();
  timeline.add(state(1, [player("gone", 0, 0), player("fell", 0, 0), player("turns", 0, 0, 3)]), 50);
  timeline.add(state(2, [player("new", 7, 7), player("fell", 500, 0), player("turns", 0, 0, -3)]), 100);
  const half = new Map(timeline.at(75 + DELAY_MS).players.map((each) => [each[0], each]));
  assert.deepEqual([...half.keys()], ["new", "fell", "turns"]);
  assert.equal(half.get("new")[X], 7);
  assert.equal(half.get("fell")[X], 0); // not on the way through the yard
  assert.ok(Math.abs(half.get("turns")[ANGLE] - Math.PI) < 0.01); // the short way round
  assert.equal(timeline.at(100 + DELAY_MS).players[1][X], 500);
}
{ // Events wait for their moment, and come once.
  const timeline = new Timeline();
  timeline.add(state(1, []), 50);
  timeline.add(state(2, [], { events: [["hit", 1, 2]] }), 100);
  assert.deepEqual(timeline.at(99 + DELAY_MS).events, []);
  assert.deepEqual(timeline.at(100 + DELAY_MS).events, [["hit", 1, 2]]);
  assert.deepEqual(timeline.at(101 + DELAY_MS).events, []);
}
{ // Doubles are passed over; a match that falls back to a snapshot is followed; what is kept is bounded.
  const timeline = new Timeline();
  for (let tick = 1; tick < 1000; tick += 1) { timeline.add(state(tick, [player("a", tick, 0)]), tick * 50); }
  timeline.add(state(998, [player("a", -1, 0)]), 999 * 50);
  assert.equal(timeline.newest.tick, 999);
  timeline.add(state(980, [player("a", -1, 0)], { epoch: 2 }), 52000);
  assert.equal(timeline.newest.tick, 980);
  close(timeline.at(52000 + DELAY_MS).players[0][X], -1);
}
{ // Bullets by their number.
  const timeline = new Timeline();
  timeline.add(state(1, [], { bullets: [[1, 0, 0], [2, 50, 50]] }), 50);
  timeline.add(state(2, [], { bullets: [[2, 150, 50], [3, 5, 5]] }), 100);
  assert.deepEqual(timeline.at(75 + DELAY_MS).bullets, [[2, 100, 50], [3, 5, 5]]);
}

close(turned(0, 1, 0.5), 0.5);
assert.deepEqual(direction([]), { dx: 0, dy: 0 });
assert.deepEqual(direction(["KeyW", "ArrowUp"]), { dx: 0, dy: -1 });
assert.deepEqual(direction(["KeyA", "KeyD", "KeyS"]), { dx: 0, dy: 1 });
close(Math.hypot(...Object.values(direction(["KeyW", "KeyD"]))), 1);
const rank = (name, score, falls) => [name, name, 0, 0, 0, 100, score, falls];
assert.deepEqual(
  ranked([rank("c", 1, 2), rank("b", 1, 1), rank("a", 1, 1), rank("d", 3, 9)]).map((each) => each[0]),
  ["d", "a", "b", "c"],
);
for (const id of ["", "a", "b5c1f0", "ff".repeat(20)]) { assert.ok(hue(id) >= 75 && hue(id) < 380); }
assert.notEqual(wrongWith("  "), "");
assert.equal(wrongWith("Ann"), "");
