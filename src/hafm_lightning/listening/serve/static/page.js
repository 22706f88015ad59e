// A listener's visit: consent, volume, trials, thanks. The server keeps where a listener stands.

import { get, post, Refused } from "./requests.js";
import { Player } from "./player.js";

const SOUNDS = ["vocal", "first", "second"];
const ANSWERS = [["first", "First"], ["second", "Second"], ["tie", "No difference"]];
const QUESTIONS = {
  rhythm: "Rhythm: which one moves with the voice?",
  harmony: "Harmony: which one's chords suit the voice?",
  overall: "Over all: which one fits the voice better?",
};
const SURE = ["1 guess", "2", "3", "4", "5 certain"];
const SECTIONS = ["loading", "consent", "level", "trial", "done", "gone"];
const VOLUME_SET = "listening-volume-set"; // of this visit: another day, the volume is another one

const $ = (id) => document.getElementById(id);
const say = (text) => { $("message").textContent = text; };
const player = new Player(() => draw());

let study = null;
let state = null;
let heard = new Set();
let marked = 0;
let firstPlay = null;
let sending = false;

const pendingKey = () => `listening-pending-${study.study}`;

// Private windows may forbid storage; then only a reload in the middle of sending asks for the answer again.
const storage = (kind, action) => {
  try {
    return action(window[kind]);
  } catch {
    return null;
  }
};

function show(section) {
  for (const id of SECTIONS) $(id).hidden = id !== section;
  $("footer").hidden = !["level", "trial", "done"].includes(section);
  const heading = $(section).querySelector("h2");
  if (heading) heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function radio(name, value, text) {
  const label = document.createElement("label");
  label.className = "choice";
  const input = Object.assign(document.createElement("input"), { type: "radio", name, value, required: true });
  const caption = Object.assign(document.createElement("span"), { textContent: text });
  label.append(input, caption);
  return label;
}

function buildForm() {
  for (const criterion of study.criteria) {
    const field = Object.assign(document.createElement("fieldset"), { id: `criterion-${criterion}`, disabled: true });
    const legend = Object.assign(document.createElement("legend"), { textContent: QUESTIONS[criterion] || criterion });
    const choices = Object.assign(document.createElement("div"), { className: "choices" });
    choices.append(...ANSWERS.map(([value, text]) => radio(criterion, value, text)));
    field.append(legend, choices);
    $("criteria").append(field);
  }
  $("confidence-choices").append(...SURE.map((text, index) => radio("confidence", String(index + 1), text)));
}

const checked = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value ?? null;
const isComplete = () => [...study.criteria, "confidence"].every((name) => checked(name) !== null);

function draw() {
  if (!state?.trial) {
    $("noise").textContent = player.playing ? "Stop" : "Play the noise";
    return;
  }
  const ready = SOUNDS.every((sound) => player.has(state.trial.sounds[sound]));
  const all = SOUNDS.every((sound) => heard.has(sound));
  for (const button of document.querySelectorAll("#sounds [data-sound]")) {
    const sound = button.dataset.sound;
    const isPlaying = player.playing === state.trial.sounds[sound];
    button.disabled = !ready || sending || !SOUNDS.slice(0, SOUNDS.indexOf(sound)).every((name) => heard.has(name));
    button.toggleAttribute("data-playing", isPlaying);
    button.querySelector(".heard").textContent = heard.has(sound) ? "✓ heard" : "";
    button.setAttribute("aria-label", `${isPlaying ? "Stop" : "Play"} the ${sound}${heard.has(sound) ? ", heard" : ""}`);
  }
  $("all").disabled = !ready || sending;
  $("position").value = player.share;
  $("hint").hidden = all;
  const fields = [...study.criteria.map((criterion) => $(`criterion-${criterion}`)), $("confidence")];
  fields.forEach((field, index) => {
    field.disabled = !all || sending;
    field.classList.toggle("marked", all && index === marked);
  });
  $("send").disabled = !all || sending || !isComplete();
}

function showTrial() {
  heard = new Set(state.trial.heard);
  marked = 0;
  firstPlay = null;
  $("answers").reset();
  $("progress").max = state.total;
  $("progress").value = state.done;
  $("progress-text").textContent = `Trial ${state.done + 1} of ${state.total}`;
  show("trial");
  draw();
  fetchSounds();
}

async function fetchSounds() {
  const own = Object.values(state.trial.sounds);
  player.forgetAllBut([...own, ...state.next]);
  for (const name of [...own, ...state.next]) {
    if (player.has(name)) continue;
    try {
      player.keep(name, await get(`/sounds/${name}`, say));
    } catch (error) {
      if (own.includes(name) && Object.values(state?.trial?.sounds ?? {}).includes(name)) return fail(error);
      return undefined; // the listener is on another trial by now
    }
    draw();
  }
  return undefined;
}

async function playSound(sound) {
  const { name: trial, sounds } = state.trial;
  if (player.playing === sounds[sound]) {
    player.stop();
    return false;
  }
  firstPlay ??= performance.now();
  try {
    if (!(await player.play(sounds[sound]))) return false;
    if (!heard.has(sound)) {
      await post("/api/plays", { trial, sound }, say);
      if (state.trial?.name !== trial) return false;
      heard.add(sound);
      if (SOUNDS.every((name) => heard.has(name))) say("You can answer now, and hear the sounds again.");
    }
  } catch (error) {
    if (error instanceof Refused) fail(error);
    else say("The sound could not be played. Please press the button again.");
    return false;
  } finally {
    draw();
  }
  return true;
}

async function playAll() {
  const trial = state.trial.name;
  for (const sound of SOUNDS) {
    if (state.trial?.name !== trial || !(await playSound(sound))) return;
  }
}

function go(next) {
  state = next;
  if (!state.trial) {
    $("progress").value = state.done;
    say("");
    return show("done");
  }
  if (!storage("sessionStorage", (store) => store.getItem(VOLUME_SET))) return showLevel();
  return showTrial();
}

async function showLevel() {
  show("level");
  try {
    if (!player.has("level")) player.keep("level", await get("/sounds/level.wav", say));
    $("link").value = await ownLink();
  } catch (error) {
    fail(error);
  }
}

const ownLink = async () => `${location.origin}/#${(await get("/api/link", say)).secret}`;

function fail(error) {
  if (error instanceof Refused && error.status === 401) {
    state = null;
    show("consent");
  } else if (error instanceof Refused && error.status === 410) {
    state = null;
    show("gone");
  }
  say(error instanceof Refused ? error.message : "Something went wrong on this page. Please load it again.");
}

// The answer is kept on this device until the server has it, also over a reload.
async function send(vote) {
  sending = true;
  draw();
  storage("localStorage", (store) => store.setItem(pendingKey(), JSON.stringify(vote)));
  try {
    const answer = await post("/api/votes", vote, say);
    storage("localStorage", (store) => store.removeItem(pendingKey()));
    sending = false;
    say("Your answer is stored.");
    go(answer.state);
  } catch (error) {
    sending = false;
    if (error instanceof Refused) storage("localStorage", (store) => store.removeItem(pendingKey()));
    if (error instanceof Refused && ![401, 410].includes(error.status)) go(state);
    if (error instanceof Refused && error.status === 409) go(await get("/api/state", say));
    fail(error);
    draw();
  }
}

function submit() {
  if ($("send").disabled) return;
  player.stop();
  const answers = Object.fromEntries(study.criteria.map((criterion) => [criterion, checked(criterion)]));
  const seconds = firstPlay === null ? 0 : Math.round(performance.now() - firstPlay) / 1000;
  send({ trial: state.trial.name, answers, confidence: Number(checked("confidence")), seconds });
}

function choose(name, value) {
  const input = document.querySelector(`input[name="${name}"][value="${value}"]`);
  if (!input || input.matches(":disabled")) return;
  input.checked = true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || document.querySelector("dialog[open]")) return;
  if ($("trial").hidden || event.target.matches("input[type=text]")) return;
  const key = event.key.toLowerCase();
  const sound = { v: "vocal", f: "first", s: "second" }[key];
  const criterion = study.criteria[marked];
  if (sound) document.querySelector(`[data-sound="${sound}"]`).click();
  else if (key === "p") $("all").click();
  else if (key === "u") marked = Math.max(0, marked - 1);
  else if (criterion && "120".includes(key)) choose(criterion, { 1: "first", 2: "second", 0: "tie" }[key]);
  else if (!criterion && "12345".includes(key)) choose("confidence", key);
  else if (key === "enter" && !event.target.closest("button, summary")) submit();
  else return;
  event.preventDefault();
  draw();
}

function listen() {
  $("agree").addEventListener("change", () => { $("join").disabled = !$("agree").checked; });
  $("consent-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("join").disabled = true;
    say("");
    try {
      const body = { agree: true };
      if (study.invitation) body.invitation = $("invitation").value.trim();
      await post("/api/join", body, say);
      go(await get("/api/state", say));
    } catch (error) {
      fail(error);
    }
    $("join").disabled = !$("agree").checked;
  });
  $("noise").addEventListener("click", async () => {
    if (player.playing) return player.stop();
    if (!player.has("level")) return undefined;
    $("begin").disabled = false;
    try {
      await player.play("level");
    } catch {
      say("The sound could not be played. Please press the button again.");
    }
    return undefined;
  });
  $("begin").addEventListener("click", () => {
    player.stop();
    storage("sessionStorage", (store) => store.setItem(VOLUME_SET, "yes"));
    say("");
    showTrial();
  });
  $("copy").addEventListener("click", async () => {
    $("link").select();
    try {
      await navigator.clipboard.writeText($("link").value);
      say("The link is copied.");
    } catch {
      say("The link is marked: copy it with your keyboard or by a long touch.");
    }
  });
  for (const button of document.querySelectorAll("#sounds [data-sound]")) {
    button.addEventListener("click", () => playSound(button.dataset.sound));
  }
  $("all").addEventListener("click", playAll);
  $("answers").addEventListener("change", (event) => {
    const index = study.criteria.indexOf(event.target.name);
    if (index >= 0) marked = index + 1;
    draw();
  });
  $("answers").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  document.addEventListener("keydown", onKey);
  $("show-link").addEventListener("click", async () => {
    try {
      $("link-again").value = await ownLink();
      $("link-dialog").showModal();
    } catch (error) {
      fail(error);
    }
  });
  $("withdraw").addEventListener("click", () => $("withdraw-dialog").showModal());
  $("withdraw-dialog").addEventListener("close", async () => {
    if ($("withdraw-dialog").returnValue !== "withdraw") return;
    player.stop();
    try {
      await post("/api/withdraw", { withdraw: true }, say);
      state = null;
      say("");
      show("gone");
    } catch (error) {
      fail(error);
    }
  });
}

async function begin() {
  study = await get("/api/study", say);
  document.title = study.title;
  $("title").textContent = study.title;
  $("question").textContent = study.question;
  $("invitation-row").hidden = !study.invitation;
  $("invitation").required = study.invitation;
  for (const text of study.consent.split(/\n\s*\n/)) {
    $("consent-text").append(Object.assign(document.createElement("p"), { textContent: text.trim() }));
  }
  buildForm();
  listen();
  const secret = location.hash.slice(1);
  history.replaceState(null, "", location.pathname); // the secret stays out of bookmarks and screenshots
  let current;
  try {
    current = secret ? await post("/api/resume", { secret }, say) : await get("/api/state", say);
  } catch (error) {
    fail(error);
    if (!secret) say(""); // nobody has agreed on this device yet
    if (error instanceof Refused && error.status === 410) say("");
    return;
  }
  const pending = JSON.parse(storage("localStorage", (store) => store.getItem(pendingKey())) ?? "null");
  if (pending && current.trial?.name === pending.trial) {
    state = current;
    await send(pending);
    return;
  }
  storage("localStorage", (store) => store.removeItem(pendingKey()));
  go(current);
}

begin().catch(fail);
