// ---- Correcting the notes: every change makes new notes, so that a list of them is a state to go back to ----

const controls = Object.fromEntries(["edit", "undo", "redo", "doubtful", "right", "remove", "sine", "save", "chosen",
  "command", "worth"].map((id) => [id, document.getElementById(id)]));
const roll = lanes.find((lane) => lane.dataset.kind === "roll");
const STEP = 0.01, EDGE = 6, SHORTEST = 0.03, DRAWN = 0.25;
let editing = false, selected = null, drag = null;
const past = [], future = [];

const state = () => ({ notes: data.notes, rests: data.rests, selected });
const byTime = (a, b) => a.onset - b.onset || a.instrument - b.instrument || a.pitch - b.pitch;
/** Rounded as they are saved. */
const tidy = (note) => ({ ...note, onset: Number(note.onset.toFixed(4)), offset: Number(note.offset.toFixed(4)) });

function restore(from, to) {
  if (!from.length) return;
  to.push(state());
  ({ notes: data.notes, rests: data.rests, selected } = from.pop());
  refresh();
}
const undo = () => restore(past, future), redo = () => restore(future, past);

function remember(before) {
  past.push(before);
  future.length = 0;
}

/** Puts a note in the place of another, of none, or of nothing at all; does not remember what was. */
function put(old, note) {
  data.notes = data.notes.filter((other) => other !== old);
  if (note) {
    note = tidy(note);
    data.notes = [...data.notes, note].sort(byTime);
  }
  selected = note;
  refresh();
}

/** Changes the selected note, which is right from then on. */
function change(fields, sounds = false) {
  if (!selected) return;
  const note = { ...selected, ...fields, held: true };
  // Its pitch no longer bends as it did.
  if (fields.pitch !== undefined || fields.onset !== undefined) Object.assign(note, { times: [], bend: [] });
  note.onset = Math.min(Math.max(note.onset, 0), data.duration - SHORTEST);
  note.offset = Math.min(Math.max(note.offset, note.onset + SHORTEST), data.duration);
  note.pitch = Math.min(Math.max(note.pitch, data.keys[0]), data.keys[1]);
  remember(state());
  put(selected, note);
  if (sounds) preview(note);
}

function remove() {
  if (!selected) return;
  remember(state());
  const { instrument, onset, offset } = selected;
  data.rests = [...data.rests, { instrument, onset, offset }].sort(byTime);
  put(selected, null);
}

function add(onset, offset, pitch, instrument) {
  remember(state());
  put(null, { instrument, onset, offset, pitch, level: selected?.level ?? -30, held: true, times: [], bend: [] });
  preview(selected);
}

function select(note, follows = true) {
  selected = note;
  if (note && follows) {
    const x = lane0().offsetLeft + note.onset / data.duration * lane0().offsetWidth;
    if (x < score.scrollLeft + lane0().offsetLeft || x > score.scrollLeft + score.clientWidth - 40)
      score.scrollLeft = x - 0.4 * score.clientWidth;
    if (!playing) move(Math.max(0, note.onset - 0.2));
  }
  refresh();
}

// ---- Where to look first ----

/** What correcting a note can be worth: the doubt, by how long and how loud it is. */
const worth = (note) => note.held || note.confidence === null ? 0
  : Math.max(0, 2 - note.confidence) * (note.offset - note.onset) * 10 ** (Math.max(note.level, -60) / 20);
const doubts = () => data.notes.filter((note) => worth(note) > 0).sort((a, b) => worth(b) - worth(a));

function nextDoubtful() {
  const list = doubts();
  if (list.length) select(list[(list.indexOf(selected) + 1) % list.length]);
}

function neighbour(step) {
  const at = data.notes.indexOf(selected);
  const next = at < 0 ? data.notes.findIndex((note) => note.offset > now()) : at + step;
  if (data.notes[next]) select(data.notes[next]);
}

// ---- Sound ----

const sounding = new Set();
function beep(note, when, length) {
  const oscillator = context.createOscillator(), gain = context.createGain();
  oscillator.frequency.value = hertz(note.pitch);
  gain.gain.setValueAtTime(0, when);
  gain.gain.linearRampToValueAtTime(0.12, when + 0.01);
  gain.gain.setValueAtTime(0.12, Math.max(when + 0.01, when + length - 0.02));
  gain.gain.linearRampToValueAtTime(0, when + length);
  oscillator.connect(gain).connect(context.destination);
  oscillator.start(when);
  oscillator.stop(when + length);
  sounding.add(oscillator);
  oscillator.onended = () => sounding.delete(oscillator);
}
const sines = () => controls.sine.getAttribute("aria-pressed") === "true";
function preview(note) {
  if (!sines() || playing) return;
  open();
  context.resume().then(() => beep(note, context.currentTime + 0.01, Math.min(0.4, note.offset - note.onset)));
}

/** Schedules what the part begins to play in the next moments: that of the selected note, else every part. */
let scheduled = -Infinity;
listeners.push({
  start() { scheduled = -Infinity; },
  tick(at) {
    const ahead = at + 0.5;
    for (const note of sines() ? data.notes : []) {
      if (note.onset >= ahead) break;
      const other = selected && note.instrument !== selected.instrument;
      const from = Math.max(note.onset, at);
      if (other || note.onset < scheduled || note.offset <= from) continue;
      beep(note, Math.max(began + from, context.currentTime), note.offset - from);
    }
    scheduled = ahead;
  },
  stop() { for (const oscillator of sounding) oscillator.stop(); },
});

// ---- Saving ----

const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
function table() {
  const named_ = data.names.some((name, n) => name !== `instrument ${n + 1}`);
  const doubtful = data.notes.some((note) => note.confidence !== null && note.confidence !== undefined);
  const header = ["onset_s", "offset_s", "instrument", "pitch", "name", "level_db",
    ...(doubtful ? ["confidence"] : []), ...(named_ ? ["instrument_name"] : []), "held"];
  const row = (event, cells) => [event.onset.toFixed(4), event.offset.toFixed(4), event.instrument + 1, ...cells,
    ...(named_ ? [quoted(data.names[event.instrument])] : []), event.held === false ? "no" : "yes"].join(",");
  const rows = [
    ...data.notes.map((n) => [n, row(n, [n.pitch.toFixed(2), named(n.pitch), n.level.toFixed(1),
      ...(doubtful ? [n.confidence === null || n.confidence === undefined ? "" : n.confidence.toFixed(2)] : [])])]),
    ...data.rests.map((r) => [r, row(r, ["", "", "", ...(doubtful ? [""] : [])])]),
  ].sort(([a], [b]) => byTime({ pitch: 0, ...a }, { pitch: 0, ...b })).map(([, text]) => text);
  return [header.join(","), ...rows, ""].join("\n");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = "notes.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- What is shown ----

function refresh() {
  drawNotes(roll);
  const corrected = data.notes.filter((note) => note.held).length + data.rests.length;
  controls.undo.disabled = !past.length;
  controls.redo.disabled = !future.length;
  controls.right.disabled = controls.remove.disabled = !selected;
  controls.doubtful.disabled = !doubts().length;
  controls.save.textContent = corrected ? `Save notes.csv (${corrected} corrected)` : "Save notes.csv";
  controls.chosen.textContent = selected ? `${data.names[selected.instrument]}: ${named(selected.pitch)}, `
    + `${selected.onset.toFixed(2)} to ${selected.offset.toFixed(2)} s${selected.held ? ", right" : ""}` : "No note is chosen";
  controls.worth.replaceChildren(...doubts().slice(0, 8).map((note) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = `${spoken(note.onset)} ${named(note.pitch)}, ${data.names[note.instrument]}`;
    button.setAttribute("aria-label", `Go to ${button.textContent}`);
    button.addEventListener("click", () => { edit(true); select(note); });
    item.append(button);
    return item;
  }));
}

function edit(on) {
  editing = on;
  controls.edit.setAttribute("aria-pressed", on);
  roll.classList.toggle("editing", on);
  if (!on) selected = null;
  refresh();
}

// ---- Mouse ----

function place(event) {
  const box = roll.getBoundingClientRect();
  const time = (event.clientX - box.left) / box.width * data.duration;
  const pitch = pitchAt(roll, 1 - (event.clientY - box.top) / box.height);
  const edge = EDGE / box.width * data.duration;
  // The last that is drawn lies on top.
  const note = data.notes.findLast((n) => n.onset - edge / 2 <= time && time <= n.offset + edge / 2
    && Math.abs(Math.round(n.pitch) - pitch) <= 0.6);
  const wide = note && note.offset - note.onset > 3 * edge;
  const part = !note ? "new" : wide && time > note.offset - edge ? "end" : wide && time < note.onset + edge ? "begin" : "all";
  return { time, pitch, note, part };
}

roll.addEventListener("pointerdown", (event) => {
  if (!editing || event.button) return;
  const at = place(event);
  const instrument = selected?.instrument ?? 0;
  drag = { ...at, before: state(), moved: false, instrument };
  select(at.note ?? null, false);
  roll.setPointerCapture(event.pointerId);
});
roll.addEventListener("pointermove", (event) => {
  if (!editing) return;
  const at = place(event);
  if (!drag) {
    roll.dataset.hand = at.part;
    return;
  }
  const by = at.time - drag.time, keys = Math.round(at.pitch) - Math.round(drag.pitch);
  if (!drag.moved && Math.abs(by) / data.duration * roll.offsetWidth < 3 && !keys) return;
  drag.moved = true;
  ({ notes: data.notes, rests: data.rests } = drag.before);
  const old = drag.note ?? null;
  const within = (time) => Math.min(Math.max(time, 0), data.duration);
  const changes = {
    new: () => ({ instrument: drag.instrument, pitch: Math.round(drag.pitch), level: -30, times: [], bend: [],
      confidence: null, onset: within(Math.min(drag.time, at.time)), offset: within(Math.max(drag.time, at.time, drag.time + SHORTEST)) }),
    end: () => ({ offset: Math.max(within(old.offset + by), old.onset + SHORTEST) }),
    begin: () => ({ onset: Math.min(within(old.onset + by), old.offset - SHORTEST) }),
    all: () => {
      const shift = Math.min(Math.max(by, -old.onset), data.duration - old.offset);
      return { onset: old.onset + shift, offset: old.offset + shift, pitch: old.pitch + keys, times: [], bend: [] };
    },
  };
  put(old, { ...old, ...changes[drag.part](), held: true });
});
roll.addEventListener("pointerup", () => {
  if (drag?.moved) {
    remember(drag.before);
    preview(selected);
  }
  drag = null;
});
roll.addEventListener("pointercancel", () => {
  if (drag?.moved) ({ notes: data.notes, rests: data.rests, selected } = drag.before);
  drag = null;
  refresh();
});

// ---- Keys, while notes are corrected ----

const chooses = (number) => selected && number >= 1 && number <= data.names.length;
const keys = {
  KeyN: nextDoubtful,
  Comma: () => neighbour(-1),
  Period: () => neighbour(1),
  ArrowUp: (more) => selected && change({ pitch: selected.pitch + (more ? 12 : 1) }, true),
  ArrowDown: (more) => selected && change({ pitch: selected.pitch - (more ? 12 : 1) }, true),
  ArrowLeft: (more) => selected && (more ? change({ offset: selected.offset - STEP })
    : change({ onset: selected.onset - STEP, offset: selected.offset - STEP })),
  ArrowRight: (more) => selected && (more ? change({ offset: selected.offset + STEP })
    : change({ onset: selected.onset + STEP, offset: selected.offset + STEP })),
  Enter: () => change({}),
  Delete: remove,
  Backspace: remove,
  KeyA: () => add(now(), Math.min(now() + DRAWN, data.duration), Math.round(selected?.pitch ?? (data.keys[0] + data.keys[1]) / 2),
    selected?.instrument ?? 0),
  Escape: () => select(null),
};
document.addEventListener("keydown", (event) => {
  if (event.altKey) return;
  if (event.ctrlKey || event.metaKey) {
    const back = event.code === "KeyZ" && !event.shiftKey, on = event.code === "KeyY" || event.code === "KeyZ";
    if (!editing || !(back || on)) return;
    back ? undo() : redo();
  } else if (event.code === "KeyE") {
    edit(!editing);
  } else if (!editing || event.target.closest("input, [role=region]")
    || (event.code === "Enter" && event.target.closest("button"))) {
    return;
  } else {
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
    const arrow = event.code.startsWith("Arrow");
    if (digit && !event.shiftKey && chooses(Number(digit[1]))) change({ instrument: Number(digit[1]) - 1 });
    else if (keys[event.code] && !(arrow && !selected)) keys[event.code](event.shiftKey);
    else return;
  }
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);

for (const [id, action] of Object.entries({
  undo, redo, remove, save, doubtful: () => { edit(true); nextDoubtful(); }, right: () => change({}),
  edit: () => edit(!editing),
  sine: () => controls.sine.setAttribute("aria-pressed", !sines()),
})) controls[id].addEventListener("click", action);

// ---- The command names the folder in which the page lies ----

const lies = location.protocol === "file:" ? decodeURIComponent(location.pathname).split("/").at(-2) : "";
if (lies) document.getElementById("folder").textContent =
  /^\w[\w.,+@-]*$/.test(lies) ? lies : `'${lies.replaceAll("'", "'\\''")}'`;
