// Requests to the server. What a listener has done is sent until the server has it, however long that takes.

const LIMIT_MS = 20000;
const LONGEST_WAIT_MS = 15000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function once(path, body) {
  const options = { credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS) };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "Content-Type": "application/json", "X-Listening-Study": "1" };
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  let message = "";
  try {
    message = (await answer.json()).error;
  } catch {
    // a proxy answers in its own words
  }
  const refused = new Refused(answer.status, message || `The server answers ${answer.status}.`);
  refused.waitMs = 1000 * Number(answer.headers.get("Retry-After") || 0);
  throw refused;
}

// Repeats until there is an answer; `onWait` hears the reason of each wait, and "" when it is over.
async function untilAnswered(path, body, onWait) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await once(path, body);
      const content = path.startsWith("/sounds/") ? await answer.blob() : await answer.json();
      if (attempt) onWait("");
      return content;
    } catch (error) {
      const passing = !(error instanceof Refused) || error.status >= 500 || [408, 429].includes(error.status);
      if (!passing) throw error;
      const waitMs = Math.max(error.waitMs || 0, Math.min(LONGEST_WAIT_MS, 500 * 2 ** Math.min(attempt, 6)));
      onWait(error.status === 429 ? error.message : "No connection to the server. Nothing is lost: trying again …");
      await pause(waitMs * (0.75 + 0.5 * Math.random()));
    }
  }
}

export const get = (path, onWait) => untilAnswered(path, undefined, onWait);
export const post = (path, body, onWait) => untilAnswered(path, body, onWait);
