// What is drawn at a moment, made of states that come twenty times a second. Pure: no page, no clock.

export const DELAY_MS = 90; // behind the newest state: the time between two, and some for the network
const KEPT = 20;
const JUMP = 60; // in the arena's units: who is farther from one state to the next was placed anew

// Fields of a player and of a bullet in a state.
export const [ID, NAME, X, Y, ANGLE, HEALTH, SCORE, FALLS] = [0, 1, 2, 3, 4, 5, 6, 7];

export class Timeline {
  #states = [];
  #events = [];
  #behind = null; // how far the shard's clock is behind ours, at the quickest delivery lately

  /** A state has come. One that is not newer is passed over; a new owner may begin with an older one. */
  add(state, now) {
    const last = this.#states.at(-1);
    if (last && state.epoch === last.epoch && state.tick <= last.tick) { return; }
    if (last && state.epoch !== last.epoch) { this.clear(); }
    const behind = now - state.time;
    const isNew = this.#behind === null || Math.abs(behind - this.#behind) > 2000;
    // A quicker delivery counts at once; slower ones little by little, since clocks differ a bit.
    this.#behind = isNew || behind < this.#behind ? behind : this.#behind + (behind - this.#behind) * 0.02;
    this.#states.push(state);
    if (this.#states.length > KEPT) { this.#states.shift(); }
    for (const event of state.events ?? []) { this.#events.push([state.time, event]); }
  }

  clear() {
    this.#states = [];
    this.#events = [];
    this.#behind = null;
  }

  get newest() { return this.#states.at(-1) ?? null; }

  /** Players and bullets where they are to be drawn now, and the events that are due; null: nothing is known. */
  at(now) {
    const states = this.#states;
    if (!states.length) { return null; }
    const time = now - this.#behind - DELAY_MS;
    let next = states.findIndex((state) => state.time >= time);
    if (next < 0) { next = states.length - 1; }
    const after = states[next];
    const before = states[Math.max(0, next - 1)];
    const whole = after.time - before.time;
    const share = whole > 0 ? Math.min(1, Math.max(0, (time - before.time) / whole)) : 1;
    const due = this.#events.filter(([at]) => at <= time).map(([, event]) => event);
    this.#events = this.#events.filter(([at]) => at > time);
    return {
      players: between(before.players, after.players, share, X, JUMP),
      bullets: between(before.bullets, after.bullets, share, 1, Infinity),
      events: due,
    };
  }
}

function between(old, young, share, x, jump) {
  const was = new Map(old.map((each) => [each[0], each]));
  return young.map((each) => {
    const from = was.get(each[0]);
    if (!from) { return each; }
    const [dx, dy] = [each[x] - from[x], each[x + 1] - from[x + 1]];
    if (Math.hypot(dx, dy) > jump) { return share < 1 ? from : each; }
    const now = [...each];
    now[x] = from[x] + dx * share;
    now[x + 1] = from[x + 1] + dy * share;
    if (x === X) { now[ANGLE] = turned(from[ANGLE], each[ANGLE], share); }
    return now;
  });
}

/** An angle between two, the short way round. */
export function turned(from, to, share) {
  const way = Math.atan2(Math.sin(to - from), Math.cos(to - from));
  return from + way * share;
}

/** Players by points, then by falls, then by name. */
export function ranked(players) {
  return [...players].sort(
    (a, b) => b[SCORE] - a[SCORE] || a[FALLS] - b[FALLS] || (a[NAME] < b[NAME] ? -1 : Number(a[NAME] > b[NAME])),
  );
}

const DIRECTIONS = {
  KeyW: [0, -1], ArrowUp: [0, -1], KeyS: [0, 1], ArrowDown: [0, 1],
  KeyA: [-1, 0], ArrowLeft: [-1, 0], KeyD: [1, 0], ArrowRight: [1, 0],
};

export const isDirection = (code) => code in DIRECTIONS;

/** Where those keys lead, with length 1 or 0. */
export function direction(keys) {
  let [dx, dy] = [0, 0];
  for (const key of keys) { dx += DIRECTIONS[key][0]; dy += DIRECTIONS[key][1]; }
  dx = Math.sign(dx);
  dy = Math.sign(dy);
  const length = Math.hypot(dx, dy) || 1;
  return { dx: dx / length, dy: dy / length };
}

/** The colour of a player, in degrees: always the same one, and never that of the player at the screen. */
export function hue(id) {
  let number = 0;
  for (const character of id) { number = (number * 31 + character.charCodeAt(0)) >>> 0; }
  return 75 + ((number * 0.618034) % 1) * 305;
}

/** What is wrong with a name; "": nothing. */
export function wrongWith(name) {
  return name.trim() ? "" : "Even heroes need a name.";
}
