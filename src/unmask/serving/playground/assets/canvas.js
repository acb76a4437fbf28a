// An answer while it is written: decided tokens with the forward that decided them, then the canvas or the drafts.

export const NUM_COLOURS = 6;
const CONFIDENCES = [0.95, 0.75, 0.5, 0.25];

/** The tokens of one answer. Step 0 is the prefill; a canvas token keeps the step that decided it. */
export class Answer {
  constructor() {
    this.tokens = []; // {text, step, logprob}
    this.canvas = [];
    this.drafts = [];
    this.numForwards = 0;
    this.perForward = []; // tokens that came to be decided by each decode forward
    this.text = "";
    this.rest = ""; // what tokens waited with for more bytes of a character that never came
    this.account = null;
    this.began = null;
    this.now = null;
    this.numLogprobs = 0;
    this.steps = new Map(); // of canvas tokens, by place in the answer
  }

  /** Take a choice of a chunk. */
  take(choice, now) {
    this.text += choice.delta ? choice.delta.content ?? "" : choice.text;
    const told = choice.unmask;
    if (told && "forward" in told) this.takeFrame(told, now);
    else if (told) this.account = told;
    for (const logprob of logprobsOf(choice)) {
      const token = this.tokens[this.numLogprobs++];
      if (token) token.logprob = logprob;
    }
  }

  takeFrame(frame, now) {
    this.began ??= now;
    this.now = now;
    this.numForwards = frame.forward;
    const before = this.numDecided;
    for (const text of frame.decided) {
      const step = this.steps.get(this.tokens.length) ?? frame.forward;
      this.tokens.push({ text, step, logprob: null });
    }
    frame.canvas.forEach((text, place) => {
      const position = this.tokens.length + place;
      if (text !== null && !this.steps.has(position)) this.steps.set(position, frame.forward);
    });
    this.canvas = frame.canvas;
    this.drafts = frame.drafts;
    if (frame.forward > 0) this.perForward.push(this.numDecided - before);
  }

  get numDecided() {
    return this.tokens.length + this.canvas.filter((text) => text !== null).length;
  }

  /** Tokens by decode forwards; null before the first. */
  get tokensPerForward() {
    if (this.account) return this.account.tokens_per_forward;
    return this.numForwards ? this.numDecided / this.numForwards : null;
  }

  /** Tokens by seconds since the prefill ended; null before the first decode forward. */
  get tokensPerSecond() {
    const seconds = this.account ? this.account.seconds.decode : (this.now - this.began) / 1000;
    const forwards = this.account ? this.account.num_decode_forwards : this.numForwards;
    return forwards && seconds > 0 ? this.numDecided / seconds : null;
  }

  /** Take what stands on the canvas as the text, where it is (a hole's, which grows from everywhere). */
  finish() {
    if (this.tokens.length === 0 && this.canvas.join("") === this.text) {
      this.tokens = this.canvas.map((text, place) => ({ text, step: this.steps.get(place), logprob: null }));
    }
    this.canvas = [];
    this.drafts = [];
    const shown = this.tokens.map((token) => token.text).join("");
    if (this.account && this.text.startsWith(shown)) this.rest = this.text.slice(shown.length);
  }
}

function logprobsOf(choice) {
  const told = choice.logprobs;
  if (!told) return [];
  return told.content ? told.content.map((token) => token.logprob) : told.token_logprobs;
}

/** Draws an answer between the texts around it; tokens that stay are not drawn again. */
export class Picture {
  constructor(element) {
    this.element = element;
    this.clear("", "");
  }

  clear(before, after) {
    this.before = part("around", before);
    this.decided = part("decided");
    this.open = part("open-part");
    this.element.replaceChildren(this.before, this.decided, this.open, part("around", after));
    this.drawn = [];
  }

  draw(answer) {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < 40;
    answer.tokens.forEach((token, place) => {
      this.drawn[place] ??= this.add(token, answer.tokens[place - 1]);
      this.drawn[place].className = `t ${stepClass(token.step)} ${confidenceClass(token.logprob)}`;
      this.drawn[place].title = tip(token);
    });
    this.open.replaceChildren(
      ...answer.canvas.map((text, place) => {
        if (text === null) return box();
        return part(`t canvas-token ${stepClass(answer.steps.get(answer.tokens.length + place))}`, text);
      }),
      ...answer.drafts.map((text) => part("t draft", text)),
      answer.rest,
    );
    if (isAtEnd) this.element.scrollTop = this.element.scrollHeight;
  }

  /** Add a token's element; the space between two colours has neither. */
  add({ text, step }, last) {
    const word = last?.step === step ? text : text.trimStart();
    const span = part("t", word);
    this.decided.append(text.slice(0, text.length - word.length), span);
    return span;
  }
}

/** Draw how many tokens each forward decided, one bar a forward, on a scale of so many forwards. */
export function drawForwards(svg, perForward, numForwards, most) {
  const height = Math.max(4, most);
  svg.setAttribute("viewBox", `0 0 ${Math.max(24, numForwards)} ${height}`);
  svg.replaceChildren(
    ...perForward.map((count, place) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const shown = Math.max(count, 0.12);
      const sizes = { x: place + 0.1, y: height - shown, width: 0.8, height: shown };
      for (const [name, value] of Object.entries(sizes)) bar.setAttribute(name, value);
      bar.setAttribute("class", stepClass(place + 1));
      return bar;
    }),
  );
}

function stepClass(step) {
  return step ? `s${step % NUM_COLOURS}` : "";
}

function confidenceClass(logprob) {
  if (logprob === null) return "";
  const confidence = Math.exp(logprob);
  const level = CONFIDENCES.findIndex((least) => confidence >= least);
  return `c${level < 0 ? CONFIDENCES.length : level}`;
}

function tip({ step, logprob }) {
  const by = step ? `decided by forward ${step}` : "decided by the prefill";
  return logprob === null ? by : `${by}, probability ${Math.exp(logprob).toPrecision(2)}`;
}

function part(name, text = "") {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  return span;
}

function box() {
  const span = part("box");
  span.ariaHidden = "true";
  return span;
}
