"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const [play, clock, seek, score, sheet, ruler, tip, status] =
  ["play", "clock", "seek", "score", "sheet", "ruler", "tip", "status"].map((id) => document.getElementById(id));
const names = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];

// ---- Players: every track starts at the same time of one clock, through a gain of its own ----

const tracks = [...document.querySelectorAll(".track:not(.roll)")].map((row, n) => ({
  row, kind: data.kinds[n], buffer: null, gain: null, source: null,
  solo: false, muted: data.kinds[n] === "mixture",
}));
/** Who is told of the start, the course and the end of playing. */
const listeners = [];
let context = null, began = 0, position = 0, playing = false, starting = 0;

async function decode() {
  // A context without output decodes before anything may sound, and at the rate of the recording.
  const decoder = new OfflineAudioContext(1, 1, data.rate);
  const texts = [...document.querySelectorAll("script.audio")];
  await Promise.all(texts.map(async (element, n) => {
    const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
    tracks[n].buffer = await decoder.decodeAudioData(bytes.buffer);
  }));
}

function open() {
  if (context) return;
  context = new AudioContext({ sampleRate: data.rate });
  for (const track of tracks) {
    track.gain = context.createGain();
    track.gain.gain.value = isHeard(track) ? 1 : 0;
    track.gain.connect(context.destination);
  }
}

async function start() {
  const request = ++starting;
  open();
  await context.resume();
  if (request !== starting) return;
  if (position >= data.duration - 0.01) position = 0;
  const when = context.currentTime + 0.03;
  for (const track of tracks) {
    track.source = context.createBufferSource();
    track.source.buffer = track.buffer;
    track.source.connect(track.gain);
    track.source.start(when, position);
  }
  began = when - position;
  playing = true;
  for (const listener of listeners) listener.start();
  show();
  requestAnimationFrame(follow);
}

function stop() {
  starting++;
  if (!playing) return;
  position = now();
  playing = false;
  for (const track of tracks) track.source.stop();
  for (const listener of listeners) listener.stop();
  show();
}

function now() {
  if (!playing) return position;
  const heard = context.currentTime - began - (context.outputLatency || 0);
  return Math.min(Math.max(heard, 0), data.duration);
}

function move(seconds) {
  const again = playing;
  stop();
  position = Math.min(Math.max(seconds, 0), data.duration);
  show();
  if (again) start();
}

function isHeard(track) {
  return tracks.some((t) => t.solo) ? track.solo : !track.muted;
}

function mix() {
  for (const track of tracks) {
    track.row.querySelector(".solo").setAttribute("aria-pressed", track.solo);
    track.row.querySelector(".mute").setAttribute("aria-pressed", track.muted);
    track.row.classList.toggle("unheard", !isHeard(track));
    // A short fade instead of a click.
    if (track.gain) track.gain.gain.setTargetAtTime(isHeard(track) ? 1 : 0, context.currentTime, 0.005);
  }
}

/** Solo of one track alone, or none; with `more`, in addition to others. */
function solo(track, more) {
  const wanted = !track.solo;
  if (!more) for (const other of tracks) other.solo = false;
  track.solo = wanted;
  mix();
}

function mute(track) {
  track.muted = !track.muted;
  mix();
}

// ---- Position ----

function spoken(seconds) {
  const tenths = Math.floor(seconds * 10 + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

function show() {
  const at = now();
  document.body.classList.toggle("playing", playing);
  play.setAttribute("aria-label", playing ? "Pause" : "Play");
  clock.textContent = `${spoken(at)} / ${spoken(data.duration)}`;
  seek.value = at;
  seek.setAttribute("aria-valuetext", spoken(at));
  sheet.style.setProperty("--at", at / data.duration);
}

function follow() {
  if (!playing) return;
  if (context.currentTime - began >= data.duration + (context.outputLatency || 0)) {
    stop();
    position = 0;
  }
  show();
  if (playing) for (const listener of listeners) listener.tick(now());
  const zoom = Number(sheet.style.getPropertyValue("--zoom") || 1);
  if (zoom > 1) {
    const [left, width] = [lane0().offsetLeft, lane0().offsetWidth];
    const x = left + width * now() / data.duration - score.scrollLeft;
    if (x > 0.95 * score.clientWidth || x < left) score.scrollLeft += x - left - 0.1 * score.clientWidth;
  }
  requestAnimationFrame(follow);
}

// ---- Pictures ----

const lanes = [...document.querySelectorAll(".lane")];
const lane0 = () => lanes[0];
const [low, high] = data.band, octaves = Math.log2(high / low);
const hertz = (pitch) => 440 * 2 ** ((pitch - 69) / 12);
const pitchOf = (frequency) => 69 + 12 * Math.log2(frequency / 440);
/** Height of a pitch, 0 at the bottom of a lane and 1 at its top. */
function height(lane, pitch) {
  if (lane.dataset.kind === "roll") return (pitch - data.keys[0]) / (data.keys[1] - data.keys[0]);
  return Math.log2(hertz(pitch) / low) / octaves;
}
function pitchAt(lane, height) {
  if (lane.dataset.kind === "roll") return data.keys[0] + height * (data.keys[1] - data.keys[0]);
  return pitchOf(low * 2 ** (height * octaves));
}
function named(pitch) {
  const note = Math.round(pitch);
  return names[((note % 12) + 12) % 12] + (Math.floor(note / 12) - 1);
}
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const hue = (instrument) => style(`--hue${instrument % 6}`);

function canvas(lane) {
  const element = lane.querySelector("canvas");
  const ratio = Math.min(window.devicePixelRatio || 1, 8192 / lane.offsetWidth);
  element.width = Math.round(lane.offsetWidth * ratio);
  element.height = Math.round(lane.offsetHeight * ratio);
  const pen = element.getContext("2d");
  pen.scale(ratio, ratio);
  return [pen, lane.offsetWidth, lane.offsetHeight];
}

/** Names the given degrees of every octave beside a lane. */
function label(lane, degrees) {
  const axis = lane.previousElementSibling;
  axis.replaceChildren();
  for (let pitch = 0; pitch < 140; pitch++) {
    if (!degrees.includes(pitch % 12)) continue;
    const y = height(lane, pitch);
    if (y < 0.04 || y > 0.94) continue;
    const mark = document.createElement("span");
    mark.textContent = named(pitch);
    mark.style.bottom = `${100 * y}%`;
    axis.append(mark);
  }
}

function drawTones(lane, instruments) {
  const [pen, width, tall] = canvas(lane);
  for (const n of instruments) {
    pen.fillStyle = hue(n);
    const { time, hz } = data.tones[n];
    for (let k = 0; k < time.length; k++) {
      const y = (1 - Math.log2(hz[k] / low) / octaves) * tall;
      pen.fillRect(time[k] / data.duration * width - 1, y - 1, 2, 2);
    }
  }
}

function drawNotes(lane) {
  const [pen, width, tall] = canvas(lane);
  const x = (time) => time / data.duration * width;
  const y = (pitch) => (1 - height(lane, pitch)) * tall;
  const row = tall / (data.keys[1] - data.keys[0]);
  for (let pitch = data.keys[0]; pitch <= data.keys[1]; pitch++) {
    if (names[((pitch % 12) + 12) % 12].length === 1) continue;
    pen.fillStyle = style("--card");
    pen.fillRect(0, y(pitch + 0.5), width, row);
  }
  const hues = data.names.map((_, n) => hue(n));
  for (const note of data.notes) {
    const [left, right] = [x(note.onset), x(note.offset)];
    pen.fillStyle = pen.strokeStyle = hues[note.instrument];
    // The surer, the fuller.
    pen.globalAlpha = note.held || note.confidence === null ? 0.6 : 0.15 + 0.45 * Math.min(note.confidence, 2) / 2;
    pen.beginPath();
    pen.roundRect(left, y(Math.round(note.pitch) + 0.5), Math.max(right - left - 1, 2), row, Math.min(3, row / 3));
    pen.fill();
    pen.globalAlpha = 1;
    if (note === selected || note.held) {
      pen.lineWidth = note === selected ? 2.5 : 1;
      if (note === selected) pen.strokeStyle = style("--ink");
      pen.stroke();
      pen.strokeStyle = hues[note.instrument];
    }
    pen.lineWidth = Math.max(1.5, row / 5);
    pen.beginPath();
    note.times.forEach((time, k) => pen.lineTo(x(time), y(note.bend[k])));
    pen.stroke();
  }
}

function drawRuler() {
  const wanted = data.duration / (lane0().offsetWidth / 72);
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((s) => s >= wanted) || 1800;
  ruler.replaceChildren();
  for (let n = 0; n * step < data.duration; n++) {
    const mark = document.createElement("span");
    const time = n * step;
    mark.textContent = step < 1 ? `${time.toFixed(1)} s` : data.duration < 60 ? `${time} s` : spoken(time).slice(0, -2);
    mark.style.left = `${100 * time / data.duration}%`;
    ruler.append(mark);
  }
}

function draw() {
  drawRuler();
  const everyone = data.tones.map((_, n) => n);
  let stem = 0;
  for (const lane of lanes) {
    const track = tracks[lanes.indexOf(lane)];
    if (!track) {
      drawNotes(lane);
      label(lane, 14 * (data.keys[1] - data.keys[0]) < 2 * lane.offsetHeight ? [0, 7] : [0]);
    } else {
      label(lane, [0]);
      drawTones(lane, track.kind === "mixture" ? everyone : track.kind === "stem" ? [stem++] : []);
    }
  }
}

// ---- Hover ----

function hover(event) {
  const lane = event.currentTarget, box = lane.getBoundingClientRect();
  const time = (event.clientX - box.left) / box.width * data.duration;
  const pitch = pitchAt(lane, 1 - (event.clientY - box.top) / box.height);
  const note = lane.dataset.kind === "roll" && data.notes.find((n) =>
    n.onset <= time && time <= n.offset && Math.abs(Math.round(n.pitch) - pitch) <= 0.5);
  const shown = note ? note.pitch : pitch;
  const cents = Math.round(100 * (shown - Math.round(shown)));
  const parts = [`${time.toFixed(2)} s`, `${hertz(shown).toFixed(1)} Hz`,
    `${named(shown)} ${cents < 0 ? "−" : "+"}${Math.abs(cents)} ct`];
  if (note) parts.push(`${data.names[note.instrument]}, ${note.level.toFixed(0)} dB`.replace("-", "−"));
  tip.textContent = parts.join(" · ");
  tip.hidden = false;
  const room = window.innerWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, room))}px`;
  tip.style.top = `${Math.max(4, event.clientY - 34)}px`;
}

// ---- Hands ----

let zoom = 1;
function enlarge(factor) {
  const centre = now() / data.duration;
  zoom = Math.min(Math.max(zoom * factor, 1), 16);
  sheet.style.setProperty("--zoom", zoom);
  document.getElementById("out").disabled = zoom === 1;
  document.getElementById("in").disabled = zoom === 16;
  draw();
  score.scrollLeft = centre * lane0().offsetWidth - 0.4 * (score.clientWidth - lane0().offsetLeft);
}

const toggle = () => (playing ? stop() : start());
play.addEventListener("click", toggle);
seek.addEventListener("input", () => move(Number(seek.value)));
document.getElementById("in").addEventListener("click", () => enlarge(2));
document.getElementById("out").addEventListener("click", () => enlarge(0.5));
for (const track of tracks) {
  track.row.querySelector(".solo").addEventListener("click", () => solo(track, true));
  track.row.querySelector(".mute").addEventListener("click", () => mute(track));
}
for (const lane of lanes) {
  lane.addEventListener("pointermove", hover);
  lane.addEventListener("pointerleave", () => { tip.hidden = true; });
  lane.addEventListener("click", (event) => {
    if (lane.classList.contains("editing")) return;
    const box = lane.getBoundingClientRect();
    move((event.clientX - box.left) / box.width * data.duration);
  });
}
document.addEventListener("keydown", (event) => {
  if (play.disabled || event.ctrlKey || event.metaKey || event.altKey) return;
  const onControl = event.target.closest("button, input, [role=region]");
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  const track = digit ? tracks.filter((t) => t.kind !== "residual")[Number(digit[1])]
    : event.code === "KeyR" ? tracks.find((t) => t.kind === "residual") : null;
  if (track) {
    event.shiftKey ? mute(track) : solo(track, false);
  } else if (event.code === "Space" && !(onControl && onControl.matches("button"))) {
    toggle();
  } else if ((event.code === "ArrowLeft" || event.code === "ArrowRight") && !onControl) {
    move(now() + (event.code === "ArrowLeft" ? -2 : 2));
  } else if (event.code === "Home" && !onControl) {
    move(0);
  } else if (event.key === "+" || event.key === "-") {
    enlarge(event.key === "+" ? 2 : 0.5);
  } else {
    return;
  }
  event.preventDefault();
});
{% include "editor.js" %}

let last = 0;
new ResizeObserver(() => {
  if (score.clientWidth === last) return;
  last = score.clientWidth;
  draw();
}).observe(score);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

document.getElementById("out").disabled = true;
mix();
show();
refresh();
decode().then(
  () => { play.disabled = false; status.textContent = ""; },
  () => { status.textContent = "This browser cannot decode the audio; the pictures are all there."; },
);
window.player = { tracks, start, stop, move, now, get context() { return context; } };
window.editor = { table, draw: refresh, get notes() { return data.notes; }, get selected() { return selected; }, get sounding() { return sounding.size; } };
})();
