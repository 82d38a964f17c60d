// Draws what `motion` says. Lengths are in the arena's units.
import { ANGLE, HEALTH, hue, ID, NAME, X, Y } from "./motion.js";

const RADIUS = 14;
const SPARK_MS = 260;
const FALL_MS = 700;
const FOUND_MS = 1500; // how long a ring shows where one is after being placed anew
const FONT = "600 11px system-ui, -apple-system, 'Segoe UI', sans-serif";

export class Painter {
  #canvas;
  #pen;
  #scale = 1;
  #plan = null;
  #floor = null;
  #sparks = [];
  #trails = new Map(); // of each bullet, where it was
  #foundAt = -Infinity;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
  }

  /** Fit an arena of this plan into a space of so many pixels. */
  fit(plan, width, height) {
    this.#plan = plan;
    this.#scale = Math.min(width / plan.width, height / plan.height);
    const [wide, high] = [plan.width * this.#scale, plan.height * this.#scale];
    const ratio = devicePixelRatio || 1;
    Object.assign(this.#canvas.style, { width: `${wide}px`, height: `${high}px` });
    this.#canvas.width = Math.round(wide * ratio);
    this.#canvas.height = Math.round(high * ratio);
    this.#floor = null;
  }

  /** A point of the window in the arena. */
  place(clientX, clientY) {
    const box = this.#canvas.getBoundingClientRect();
    return [(clientX - box.left) / this.#scale, (clientY - box.top) / this.#scale];
  }

  /** @param seen what Timeline.at gave; @param aim where the mouse is, or null */
  draw(seen, me, aim, now) {
    const pen = this.#pen;
    const ratio = this.#canvas.width / this.#plan.width;
    this.#floor ??= this.#floorOf(ratio);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(this.#floor, 0, 0);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const event of seen.events) { this.#happened(event, me, now); }
    const mine = seen.players.find((player) => player[ID] === me);
    if (mine && aim) { this.#aim(mine, aim); }
    this.#bullets(seen.bullets);
    for (const player of seen.players) { if (player !== mine) { this.#player(player, player[ANGLE], false); } }
    if (mine) {
      const angle = aim ? Math.atan2(aim[1] - mine[Y], aim[0] - mine[X]) : mine[ANGLE];
      this.#player(mine, angle, true);
      this.#found(mine, now);
    }
    this.#effects(now);
  }

  // -- the yard, which is drawn once and then copied

  #floorOf(ratio) {
    const floor = document.createElement("canvas");
    floor.width = this.#canvas.width;
    floor.height = this.#canvas.height;
    const pen = floor.getContext("2d");
    const { width, height, walls } = this.#plan;
    pen.scale(ratio, ratio);
    const light = pen.createRadialGradient(width / 2, height / 2, 60, width / 2, height / 2, width * 0.65);
    light.addColorStop(0, "#28313f");
    light.addColorStop(1, "#171c25");
    pen.fillStyle = light;
    pen.fillRect(0, 0, width, height);
    pen.strokeStyle = "#ffffff0b";
    pen.lineWidth = 1;
    pen.beginPath();
    for (let x = 40; x < width; x += 40) { pen.moveTo(x, 0); pen.lineTo(x, height); }
    for (let y = 40; y < height; y += 40) { pen.moveTo(0, y); pen.lineTo(width, y); }
    pen.stroke();
    pen.strokeStyle = "#ffffff14";
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(width / 2, height / 2, Math.min(width, height) * 0.3, 0, 2 * Math.PI);
    pen.stroke();
    for (const [x, y, wide, high] of walls) { this.#wall(pen, x, y, wide, high); }
    pen.strokeStyle = "#55637a";
    pen.lineWidth = 4;
    pen.strokeRect(0, 0, width, height);
    return floor;
  }

  #wall(pen, x, y, wide, high) {
    pen.save();
    pen.shadowColor = "#000a";
    pen.shadowBlur = 14;
    pen.shadowOffsetY = 5;
    pen.fillStyle = "#3b4657";
    pen.beginPath();
    pen.roundRect(x, y, wide, high, 5);
    pen.fill();
    pen.restore();
    pen.fillStyle = "#586880";
    pen.beginPath();
    pen.roundRect(x, y, wide, high - 5, 5);
    pen.fill();
    pen.strokeStyle = "#7c8da6";
    pen.lineWidth = 1.2;
    pen.beginPath();
    pen.roundRect(x + 4, y + 4, wide - 8, high - 13, 3);
    pen.stroke();
  }

  // -- who and what moves

  #player(player, angle, isMine) {
    const pen = this.#pen;
    const [x, y] = [player[X], player[Y]];
    const [body, edge] = isMine ? ["#f2b134", "#fff3d0"] : [`hsl(${hue(player[ID])} 58% 58%)`, `hsl(${hue(player[ID])} 60% 78%)`];
    pen.save();
    pen.translate(x, y);
    pen.fillStyle = "#0006";
    pen.beginPath();
    pen.ellipse(0, 5, RADIUS + 1, RADIUS - 1, 0, 0, 2 * Math.PI);
    pen.fill();
    pen.rotate(angle);
    pen.fillStyle = "#d9dde4";
    pen.strokeStyle = "#10141a";
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.roundRect(5, -3.5, RADIUS + 5, 7, 2.5);
    pen.fill();
    pen.stroke();
    pen.fillStyle = body;
    pen.beginPath();
    pen.arc(0, 0, RADIUS, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
    pen.strokeStyle = edge;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(0, 0, RADIUS - 2.5, 0, 2 * Math.PI);
    pen.stroke();
    pen.restore();
    const share = Math.max(0, player[HEALTH] / 100);
    const bar = y < 45 ? y + 20 : y - 25; // near the upper edge all of it is below
    pen.fillStyle = "#0009";
    pen.fillRect(x - 17, bar, 34, 5);
    pen.fillStyle = `hsl(${115 * share} 60% 55%)`;
    pen.fillRect(x - 16, bar + 1, 32 * share, 3);
    this.#text(player[NAME], x, y < 45 ? bar + 15 : bar - 5, isMine ? "#ffd67f" : "#e9e4d6");
  }

  #text(text, middle, y, colour) {
    const pen = this.#pen;
    pen.font = FONT;
    const half = pen.measureText(text).width / 2 + 3;
    const x = Math.min(Math.max(middle, half), this.#plan.width - half);
    pen.textAlign = "center";
    pen.lineWidth = 3;
    pen.lineJoin = "round";
    pen.strokeStyle = "#0d1016d0";
    pen.strokeText(text, x, y);
    pen.fillStyle = colour;
    pen.fillText(text, x, y);
  }

  #bullets(bullets) {
    const pen = this.#pen;
    const trails = new Map();
    pen.lineCap = "round";
    for (const [number, x, y] of bullets) {
      const trail = this.#trails.get(number) ?? [];
      trail.push([x, y]);
      if (trail.length > 8) { trail.shift(); }
      trails.set(number, trail);
      const [fromX, fromY] = trail[0];
      for (const [width, colour] of [[7, "#ffb84020"], [3.5, "#ffc96080"], [1.6, "#fff2c8"]]) {
        pen.lineWidth = width;
        pen.strokeStyle = colour;
        pen.beginPath();
        pen.moveTo(fromX, fromY);
        pen.lineTo(x, y + 0.01); // a line of no length is not drawn
        pen.stroke();
      }
    }
    this.#trails = trails;
  }

  #aim(mine, [x, y]) {
    const pen = this.#pen;
    pen.strokeStyle = "#f2b13450";
    pen.lineWidth = 1.2;
    pen.setLineDash([3, 6]);
    pen.beginPath();
    pen.moveTo(mine[X], mine[Y]);
    pen.lineTo(x, y);
    pen.stroke();
    pen.setLineDash([]);
  }

  #found(mine, now) {
    const share = (now - this.#foundAt) / FOUND_MS;
    if (share < 1) {
      this.#ring(mine[X], mine[Y], RADIUS + 60 * (1 - share), `rgb(242 177 52 / ${1 - share})`, 3);
    }
  }

  // -- what happens

  #happened([kind, x, y, who], me, now) {
    if (kind === "hit") { this.#sparks.push({ x, y, at: now, for: SPARK_MS, count: 5, far: 14, hue: 42 }); }
    if (kind === "fall") {
      this.#sparks.push({ x, y, at: now, for: FALL_MS, count: 14, far: 46, hue: who === me ? 42 : hue(who), ring: true });
      if (who === me) { this.#foundAt = now; }
    }
  }

  #effects(now) {
    const pen = this.#pen;
    this.#sparks = this.#sparks.filter((spark) => now - spark.at < spark.for);
    for (const spark of this.#sparks) {
      const share = (now - spark.at) / spark.for;
      const far = spark.far * Math.sqrt(share);
      const colour = `hsl(${spark.hue} 90% 70% / ${1 - share})`;
      if (spark.ring) { this.#ring(spark.x, spark.y, far + 8, colour, 4 * (1 - share)); }
      pen.fillStyle = colour;
      for (let number = 0; number < spark.count; number += 1) {
        const angle = (number * 2 * Math.PI) / spark.count + spark.x;
        const way = far * (0.6 + 0.4 * Math.sin(number * 7 + spark.y));
        pen.beginPath();
        pen.arc(spark.x + Math.cos(angle) * way, spark.y + Math.sin(angle) * way, 2.2 * (1 - share) + 0.4, 0, 2 * Math.PI);
        pen.fill();
      }
    }
  }

  #ring(x, y, radius, colour, width) {
    const pen = this.#pen;
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.stroke();
  }
}
