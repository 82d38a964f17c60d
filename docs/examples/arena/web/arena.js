// The client of the arena: sends what the player wants, draws what the match says. It decides nothing.
import { ANGLE, direction, FALLS, hue, ID, isDirection, NAME, ranked, SCORE, Timeline, wrongWith, X, Y } from "./motion.js";
import { Painter } from "./painter.js";

const [BAD_NAME, NOT_IN_MATCH] = [4001, 4002]; // see arena.py
const SHOOT_MS = 120; // between two tries while the button is held; the match says how fast a weapon is
const SCORES_MS = 250;
const STALE_MS = 2000; // without a state: the match has stopped, or the connection is dead without having ended
const DEAD_MS = 6000; // then a new connection is better
const TRY_MS = 4000; // without success or failure: whoever took the connection does not answer

const at = (id) => document.getElementById(id);
const scheme = location.protocol === "https:" ? "wss" : "ws";
const server = new URLSearchParams(location.search).get("server") ?? `${scheme}://${location.hostname}:8000`;
const timeline = new Timeline();
const painter = new Painter(at("field"));
const keys = new Set();

let centrifuge = null;
let name = "";
let me = "";
let match = "";
let plan = null;
let rules = "";
let isIn = false; // of the match, by this connection
let seenAt = 0;
let triedAt = 0; // when a connection was last begun, or failed
let scoresAt = 0;
let delay = 0; // ms from a command to its answer
let mouse = null; // where it is in the window
let shooting = 0;

// -- the door

at("name").value = localStorage.getItem("name") ?? "";
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  name = at("name").value.trim();
  at("wrong").textContent = globalThis.Centrifuge ? wrongWith(name) : "The SDK is missing: run npm install in web/.";
  if (at("wrong").textContent) { at("name").focus(); } else { play(); }
});

function play() {
  localStorage.setItem("name", name);
  at("door").hidden = true;
  at("game").hidden = false;
  lost("Connecting …", "");
  if (centrifuge) { // it was only the name that was wrong
    enter().catch(explain);
    return;
  }
  centrifuge = new Centrifuge(`${server}/connection/websocket`, {
    data: { secret: secret() }, minReconnectDelay: 200, maxReconnectDelay: 3000, timeout: 5000,
  });
  centrifuge.on("connecting", () => { triedAt = performance.now(); away(); });
  centrifuge.on("error", () => {
    triedAt = performance.now();
    if (!me) { lost("Connecting …", `No answer from ${server}. Does the arena run, and is ${location.origin} among its allowed_origins?`); }
  });
  centrifuge.on("disconnected", (context) => { // 0: by `again`
    if (context.code !== 0) { lost("Disconnected", `${context.reason}. Reload the page to come back.`); }
  });
  centrifuge.on("connected", () => sit());
  centrifuge.connect();
  setInterval(watch, 250);
  requestAnimationFrame(draw);
}

/** Who knows it is this player: also after a lost connection, or a reload. Each tab has its own. */
function secret() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const made = sessionStorage.getItem("secret") ?? [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("secret", made);
  return made;
}

function leave(why) { // back to the door
  isIn = false;
  at("game").hidden = true;
  at("door").hidden = false;
  at("wrong").textContent = why;
  at("name").select();
}

// -- a seat in a match. All of it again for each new connection

async function sit() {
  try {
    const seat = (await centrifuge.rpc("hall/seat", null)).data;
    if (seat !== match) {
      const old = centrifuge.getSubscription(match);
      if (old) { centrifuge.removeSubscription(old); }
      timeline.clear();
      match = seat;
      at("match").textContent = match.replace(":", " ");
    }
    let subscription = centrifuge.getSubscription(match);
    if (!subscription) {
      subscription = centrifuge.newSubscription(match);
      subscription.on("publication", (context) => seen(context.data));
    }
    subscription.subscribe(); // nothing, if it is
    await subscription.ready(5000);
    await enter();
  } catch (error) {
    explain(error);
  }
}

async function enter() {
  const entered = (await centrifuge.rpc(`${match}/enter`, { name })).data;
  me = entered.id;
  isIn = true;
  planned(entered);
  go();
}

function explain(error) {
  if (error.code === BAD_NAME) {
    leave(`No: ${error.message}.`);
  } else if (centrifuge.state === "connected") { // no shard has the match at the moment, or it is full
    lost("Waiting for the match …", error.message ?? "");
    setTimeout(() => { if (centrifuge.state === "connected" && !isIn) { sit(); } }, 1000);
  }
}

// -- what the match says

function seen(state) {
  seenAt = performance.now();
  timeline.add(state, seenAt);
  if (state.plan) { planned(state.plan); }
  if (state.rules !== rules) {
    if (rules) { tell(`New rules: ${state.rules}`); }
    rules = state.rules;
    at("rules").textContent = rules;
  }
  for (const [kind, , , who, by] of state.events) { if (kind === "fall") { fell(who, by, state); } }
  if (seenAt - scoresAt > SCORES_MS) {
    scoresAt = seenAt;
    score(state);
    // A match that fell back to its last snapshot may not know who came after it.
    if (isIn && !state.players.some((player) => player[ID] === me)) { enter().catch(explain); }
  }
}

function planned(next) {
  if (JSON.stringify(next.walls) !== JSON.stringify(plan?.walls) || next.width !== plan.width || next.height !== plan.height) {
    plan = { width: next.width, height: next.height, walls: next.walls };
    resize();
  }
}

function score(state) {
  at("scores").replaceChildren(...ranked(state.players).map((player) => {
    const row = document.createElement("tr");
    const dot = document.createElement("i");
    const label = document.createElement("span");
    row.className = player[ID] === me ? "me" : "";
    dot.style.background = player[ID] === me ? "" : `hsl(${hue(player[ID])} 58% 58%)`;
    label.textContent = label.title = player[NAME];
    row.append(...[0, 1, 2].map(() => document.createElement("td")));
    row.children[0].append(dot, label);
    row.children[1].textContent = player[SCORE];
    row.children[2].textContent = player[FALLS];
    return row;
  }));
}

function fell(who, by, state) {
  const called = (id) => (id === me ? "you" : state.players.find((player) => player[ID] === id)?.[NAME] ?? "somebody");
  const row = document.createElement("li");
  row.textContent = `${called(by)} ➤ ${called(who)}`;
  row.className = by === me || who === me ? "mine" : "";
  at("feed").append(row);
  row.addEventListener("animationend", () => row.remove());
  while (at("feed").children.length > 5) { at("feed").firstChild.remove(); }
  if (who === me) { tell(`${called(by)} got you`); }
}

let telling = 0;
function tell(text) {
  at("news").textContent = text;
  at("news").classList.add("shown");
  clearTimeout(telling);
  telling = setTimeout(() => at("news").classList.remove("shown"), 3000);
}

// -- how the connection is

function away() {
  isIn = false;
  if (me) { lost("Connection lost. Connecting again …", "Your score is kept."); }
}

function again() {
  seenAt = performance.now();
  centrifuge.disconnect();
  centrifuge.connect();
}

function lost(why, hint) {
  at("stage").classList.add("lost");
  at("lost").hidden = false;
  at("why").textContent = why;
  at("hint").textContent = hint;
}

function watch() {
  const connected = centrifuge.state === "connected";
  const connecting = centrifuge.state === "connecting";
  const quiet = performance.now() - seenAt;
  const good = connected && isIn && quiet < STALE_MS;
  at("light").className = good ? "good" : "";
  at("status").textContent = good ? `connected, ${Math.round(delay)} ms` : connected ? "waiting" : centrifuge.state;
  if (good) {
    at("stage").classList.remove("lost");
    at("lost").hidden = true;
  } else if (connected && isIn && quiet > DEAD_MS || connecting && performance.now() - triedAt > TRY_MS) {
    again();
  } else if (connected && isIn) {
    lost("The match has stopped …", "Another shard takes it over, if its own has died.");
  }
}

// -- what the player does

function say(command, parameters) {
  if (!isIn) { return; }
  const asked = performance.now();
  centrifuge.rpc(`${match}/${command}`, parameters).then(
    () => { delay += ((performance.now() - asked) - delay) * (delay ? 0.2 : 1); },
    (error) => { if (error.code === NOT_IN_MATCH && isIn) { enter().catch(explain); } }, // others: the watch tells
  );
}

const isPlaying = (event) => !at("game").hidden && !event.ctrlKey && !event.metaKey && !event.altKey;

addEventListener("keydown", (event) => {
  if (!isPlaying(event)) { return; }
  if (isDirection(event.code)) {
    event.preventDefault();
    if (!event.repeat) { keys.add(event.code); go(); }
  } else if (event.code === "Space") {
    event.preventDefault();
    if (!event.repeat) { begin(); }
  }
});
addEventListener("keyup", (event) => {
  if (keys.delete(event.code)) { go(); }
  if (event.code === "Space") { end(); }
});
addEventListener("blur", () => {
  end();
  if (keys.size) { keys.clear(); go(); }
});
addEventListener("pointermove", (event) => { mouse = [event.clientX, event.clientY]; });
at("field").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  mouse = [event.clientX, event.clientY];
  begin();
});
addEventListener("pointerup", end);
addEventListener("pointercancel", end);
at("field").addEventListener("contextmenu", (event) => event.preventDefault());

function go() { say("move", direction(keys)); }

function begin() {
  end();
  shoot();
  shooting = setInterval(shoot, SHOOT_MS);
}

function end() { clearInterval(shooting); }

function shoot() {
  const mine = timeline.newest?.players.find((player) => player[ID] === me);
  if (!mine) { return; }
  const [x, y] = mouse ? painter.place(...mouse) : [mine[X] + Math.cos(mine[ANGLE]), mine[Y] + Math.sin(mine[ANGLE])];
  say("shoot", { angle: Math.atan2(y - mine[Y], x - mine[X]) });
}

// -- drawing

function resize() {
  if (plan && !at("game").hidden) { painter.fit(plan, at("stage").clientWidth, at("stage").clientHeight); }
}
new ResizeObserver(resize).observe(at("stage"));

function draw(now) {
  requestAnimationFrame(draw);
  const moment = timeline.at(now);
  if (moment && plan) { painter.draw(moment, me, mouse && painter.place(...mouse), now); }
}
