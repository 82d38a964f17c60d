// The client of the arena: sends what the player wants, draws what the match says. It decides nothing.
"use strict";

const server = new URLSearchParams(location.search).get("server") ?? `ws://${location.hostname}:8000`;
const field = document.getElementById("field");
const status = document.getElementById("status");
const pen = field.getContext("2d");
const keys = new Set();
const directions = {
  KeyW: [0, -1], ArrowUp: [0, -1], KeyS: [0, 1], ArrowDown: [0, 1],
  KeyA: [-1, 0], ArrowLeft: [-1, 0], KeyD: [1, 0], ArrowRight: [1, 0],
};

let me = "";
let match = "";
let scale = 1;
let state = null;
let before = null;
let stateAt = 0;
let centrifuge = null;

document.getElementById("door").addEventListener("submit", (event) => {
  event.preventDefault();
  play(document.getElementById("name").value).catch((error) => { status.textContent = error.message; });
});

async function play(name) {
  document.getElementById("door").hidden = true;
  document.getElementById("game").hidden = false;
  centrifuge = new Centrifuge(`${server}/connection/websocket`);
  centrifuge.on("connecting", (context) => { status.textContent = `connecting … ${context.reason}`; });
  centrifuge.on("disconnected", (context) => { status.textContent = `disconnected: ${context.reason}`; });
  // After a lost connection the player is another client, with a seat of its own.
  centrifuge.on("connected", () => sit(name).catch((error) => { status.textContent = error.message; }));
  centrifuge.connect();
}

async function sit(name) {
  const seat = await centrifuge.rpc("hall/seat", null);
  if (match && match !== seat.data) {
    centrifuge.getSubscription(match)?.unsubscribe();
  }
  match = seat.data;
  const subscription = centrifuge.getSubscription(match) ?? centrifuge.newSubscription(match);
  if (subscription.state === "unsubscribed") {
    subscription.on("publication", (context) => seen(context.data));
    subscription.subscribe();
  }
  await subscription.ready(10000);
  const entered = (await centrifuge.rpc(`${match}/enter`, { name })).data;
  me = entered.id;
  scale = field.width / entered.width;
  field.height = entered.height * scale;
  document.getElementById("match").textContent = match;
}

function seen(next) {
  before = state;
  state = next;
  stateAt = performance.now();
  status.textContent = `rules ${next.rules}`;
  const best = [...next.players].sort((a, b) => b[6] - a[6]).slice(0, 10);
  document.getElementById("scores").replaceChildren(...best.map((player) => {
    const row = document.createElement("li");
    row.textContent = `${player[1]} ${player[6]}`;
    row.className = player[0] === me ? "me" : "";
    return row;
  }));
}

// -- what the player does

addEventListener("keydown", (event) => { if (!event.repeat && directions[event.code] && me) { keys.add(event.code); go(); } });
addEventListener("keyup", (event) => { if (keys.delete(event.code)) { go(); } });
addEventListener("blur", () => { if (keys.size) { keys.clear(); go(); } });

function go() {
  let [dx, dy] = [0, 0];
  for (const key of keys) { dx += directions[key][0]; dy += directions[key][1]; }
  const length = Math.hypot(dx, dy) || 1;
  say("move", { dx: dx / length, dy: dy / length });
}

field.addEventListener("mousedown", (event) => {
  const mine = state?.players.find((player) => player[0] === me);
  if (!mine) { return; }
  const box = field.getBoundingClientRect();
  const grown = field.width / box.width / scale;
  const angle = Math.atan2((event.clientY - box.top) * grown - mine[3], (event.clientX - box.left) * grown - mine[2]);
  say("shoot", { angle });
});

function say(command, parameters) {
  centrifuge.rpc(`${match}/${command}`, parameters).catch((error) => { status.textContent = `${command}: ${error.message}`; });
}

// -- drawing: between the last two states, so that twenty states a second look smooth

function between(player, share) {
  const old = before?.players.find((each) => each[0] === player[0]);
  const far = old && Math.hypot(old[2] - player[2], old[3] - player[3]) > 60; // placed anew
  return old && !far ? [old[2] + (player[2] - old[2]) * share, old[3] + (player[3] - old[3]) * share] : [player[2], player[3]];
}

function draw() {
  requestAnimationFrame(draw);
  if (!state) { return; }
  const share = Math.min(1, (performance.now() - stateAt) / 50);
  pen.clearRect(0, 0, field.width, field.height);
  pen.textAlign = "center";
  for (const player of state.players) {
    const [x, y] = between(player, share).map((each) => each * scale);
    const radius = 14 * scale;
    pen.fillStyle = player[0] === me ? "#e0a339" : "#5b8fb9";
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
    pen.strokeStyle = "#e6e3da";
    pen.lineWidth = 3;
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x + Math.cos(player[4]) * radius * 1.4, y + Math.sin(player[4]) * radius * 1.4);
    pen.stroke();
    pen.fillStyle = "#e6e3da";
    pen.fillText(player[1], x, y - radius - 12);
    pen.fillStyle = "#7fb069";
    pen.fillRect(x - radius, y - radius - 8, 2 * radius * player[5] / 100, 4);
  }
  pen.fillStyle = "#e6e3da";
  for (const [x, y] of state.bullets) {
    pen.fillRect(x * scale - 2, y * scale - 2, 4, 4);
  }
}
requestAnimationFrame(draw);
