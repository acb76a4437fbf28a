// From the form to a request, and from a request to the code that sends it.

export const HOLE = "____";
const CHAT = "/v1/chat/completions";
const COMPLETIONS = "/v1/completions";
const HONOURED = { rule: ["diffusion"], block_length: ["diffusion", "speculative", "auto"] };
const OPENAI = ["model", "messages", "prompt", "suffix", "max_tokens", "temperature", "seed", "stream", "logprobs"];

/** Return {path, body}, or throw an Error with the `param` that is wrong. */
export function requestOf(fields, mode, model) {
  const body = { model, ...opening(fields), max_tokens: number(fields, "max_tokens") };
  body.temperature = number(fields, "temperature");
  for (const name of ["seed", "block_length"]) body[name] = number(fields, name);
  body.rule = fields.rule.trim() || undefined;
  body.mode = mode;
  for (const [name, modes] of Object.entries(HONOURED)) if (!modes.includes(mode)) delete body[name];
  if (fields.task !== "fill" && mode !== "diffusion") body.logprobs = fields.task === "chat" ? true : 0;
  body.stream = body.stream_canvas = true;
  for (const name of Object.keys(body)) if (body[name] === undefined) delete body[name];
  return { path: fields.task === "chat" ? CHAT : COMPLETIONS, body };
}

/** Return the text before and after the answer. */
export function surroundings(fields) {
  if (fields.task === "chat") return ["", ""];
  const [before, ...after] = fields.prompt.split(HOLE);
  return fields.task === "fill" ? [before, after.join(HOLE)] : [fields.prompt, ""];
}

function opening(fields) {
  if (fields.task === "chat") return { messages: [{ role: "user", content: fields.prompt }] };
  if (fields.task === "continue") return { prompt: fields.prompt };
  if (!fields.prompt.includes(HOLE)) throw invalid("prompt", `mark the hole with ${HOLE}`);
  const [prompt, suffix] = surroundings(fields);
  return { prompt, suffix };
}

function number(fields, name) {
  const text = fields[name].trim();
  if (text === "") return undefined;
  if (Number.isNaN(Number(text))) throw invalid(name, `${text} is not a number`);
  return Number(text);
}

function invalid(param, message) {
  return Object.assign(new Error(`${param}: ${message}`), { param });
}

/** Return the request as a shell command; a key is named, never shown. */
export function curlOf({ path, body }, origin, hasKey) {
  const fields = Object.entries(body).map(([name, value]) => `    "${name}": ${JSON.stringify(value)}`);
  const quoted = `'{\n${fields.join(",\n").replaceAll("'", "'\\''")}\n  }'`;
  const key = hasKey ? '  -H "Authorization: Bearer $UNMASK_API_KEY" \\\n' : "";
  return `curl -N ${origin}${path} \\\n${key}  -H 'Content-Type: application/json' \\\n  -d ${quoted}`;
}

/** Return the request as Python with OpenAI's client; what its API does not know goes as `extra_body`. */
export function pythonOf({ path, body }, origin, hasKey) {
  const own = Object.fromEntries(Object.entries(body).filter(([name]) => OPENAI.includes(name)));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.includes(name)));
  const lines = Object.entries(own).map(([name, value]) => `    ${name}=${python(value)},`);
  lines.push(`    extra_body=${python(extra)},`);
  const key = hasKey ? 'os.environ["UNMASK_API_KEY"]' : '"none"';
  const [call, piece] = path === CHAT ? ["chat.completions", "delta.content"] : ["completions", "text"];
  return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=${key})
stream = client.${call}.create(
${lines.join("\n")}
)
for chunk in stream:
    print(chunk.choices[0].${piece} or "", end="", flush=True)`;
}

function python(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(", ")}}`;
}
