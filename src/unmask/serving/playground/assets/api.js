// The public API from a browser: the model, and streamed answers.

/** What the server, or its absence, says: `status` 0 is no answer at all; `param` names a field. */
export class ApiError extends Error {
  constructor(status, message, { param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

const GONE = "The server does not answer. Is it still running?";
const CUT = "The connection ended before the answer did.";

/** Return the served model: its name, modes and context. */
export async function fetchModel(key) {
  const response = await send("/v1/models", { headers: headers(key) });
  return (await response.json()).data[0];
}

/** Yield the chunks of a streamed answer; throw ApiError, or AbortError when the signal says so. */
export async function* streamAnswer(path, body, key, signal) {
  const response = await send(path, {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error.message, { param: chunk.error.param });
    yield chunk;
  }
  throw new ApiError(0, CUT);
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, GONE);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answered with status ${response.status}.`;
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  throw new ApiError(response.status, message, { param: told?.error?.param, retryAfter });
}

/** Yield the data of server-sent events, one line each. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, CUT);
  } finally {
    reader.cancel().catch(() => {});
  }
}
