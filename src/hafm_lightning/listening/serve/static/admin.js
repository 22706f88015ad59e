// Live counts for whoever runs the study. The token stays in this page: no cookie, no address that a server sees.

const EVERY_MS = 5000;
const $ = (id) => document.getElementById(id);
const say = (text) => { $("message").textContent = text; };
let token = location.hash.slice(1);
let timer = null;

async function ask(path) {
  const answer = await fetch(path, { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
  if (!answer.ok) throw Object.assign(new Error((await answer.json()).error), { status: answer.status });
  return answer;
}

function fill(table, head, rows) {
  const row = (cells, tag) => {
    const line = document.createElement("tr");
    line.append(...cells.map((text) => Object.assign(document.createElement(tag), { textContent: text })));
    return line;
  };
  table.replaceChildren(row(head, "th"), ...rows.map((cells) => row(cells, "td")));
}

async function refresh() {
  clearTimeout(timer);
  try {
    const counts = await (await ask("/admin/counts")).json();
    $("title").textContent = counts.title;
    const active = counts.listeners.filter((one) => !one.withdrawn);
    const withdrawn = counts.listeners.length - active.length;
    const finished = active.filter((one) => one.votes >= counts.trials.length).length;
    $("total").textContent = `${counts.votes} votes; ${active.length} listeners, ${finished} of them finished, ${withdrawn} withdrew`;
    const head = ["Listener", "Votes", "Agreed (UTC)"];
    if (counts.controls) head.push("Silence failed", "Equal sides tied");
    fill($("listeners"), head, active.map((one) => {
      const cells = [one.voter, `${one.votes} of ${counts.trials.length}`, one.agreed_at];
      if (counts.controls) {
        cells.push(`${one.silence_failed}/${one.silence_trials}`, `${one.same_tied}/${one.same_trials}`);
      }
      return cells;
    }));
    fill($("trials"), ["Trial", "Votes", "A first", "B first"], counts.trials.map((one) => [one.trial, one.votes, one.AB, one.BA]));
    $("enter").hidden = true;
    $("counts").hidden = false;
    say("");
  } catch (error) {
    say(error.status ? error.message : "No connection to the server; trying again …");
    if (error.status === 401) {
      $("enter").hidden = false;
      $("counts").hidden = true;
      return;
    }
  }
  timer = setTimeout(refresh, EVERY_MS);
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  refresh();
});
$("download").addEventListener("click", async () => {
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await (await ask("/admin/votes.jsonl")).blob());
    link.download = "votes.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    say(error.message);
  }
});
history.replaceState(null, "", location.pathname);
if (token) refresh();
