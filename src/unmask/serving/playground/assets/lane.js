// One of the two answers on the page: its mode, numbers and canvas.

import { streamAnswer } from "./api.js";
import { Answer, Picture } from "./canvas.js";
import { copyText } from "./copy.js";

export class Lane {
  constructor(template, name) {
    this.element = template.content.firstElementChild.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    this.mode = find(".mode");
    this.mode.parentElement.querySelector(".unseen").textContent = `Mode, ${name}`;
    this.parts = {
      state: find(".state"),
      perForward: find(".per-forward"),
      perSecond: find(".per-second"),
      counts: find(".counts"),
      forwards: find(".forwards"),
      canvas: find(".canvas"),
      error: find(".lane-error"),
      copy: find(".copy-text"),
    };
    this.parts.canvas.ariaLabel = `Answer, ${name}`;
    this.picture = new Picture(this.parts.canvas);
    this.answer = new Answer();
    this.parts.copy.addEventListener("click", () => copyText(this.picture.decided, this.parts.copy));
  }

  get isOn() {
    return this.mode.value !== "off";
  }

  /** Offer the model's modes, with this one chosen, and "off" if the lane may be. */
  offer(modes, chosen, mayBeOff) {
    const names = mayBeOff ? [...modes, "off"] : modes;
    this.mode.replaceChildren(...names.map((name) => new Option(name, name)));
    this.mode.value = names.includes(chosen) ? chosen : names.at(-1);
  }

  clear([before, after]) {
    this.answer = new Answer();
    this.picture.clear(before, after);
    this.fail("");
    this.show("");
  }

  /** Run a request to its end; `onForward` is called after every drawing. Throw what `streamAnswer` throws. */
  async run({ path, body }, key, signal, onForward) {
    this.show("waiting");
    try {
      for await (const chunk of streamAnswer(path, body, key, signal)) {
        for (const choice of chunk.choices) this.answer.take(choice, performance.now());
        this.show("writing");
        onForward();
      }
    } catch (error) {
      this.show(error.name === "AbortError" ? "cancelled" : "failed");
      throw error;
    } finally {
      this.answer.finish();
      this.picture.draw(this.answer);
    }
    this.show("done");
    onForward();
  }

  show(state) {
    const { answer, parts } = this;
    this.element.dataset.state = state;
    parts.state.textContent = state;
    parts.perForward.textContent = answer.tokensPerForward?.toFixed(2) ?? "–";
    parts.perSecond.textContent = answer.tokensPerSecond?.toFixed(1) ?? "–";
    parts.counts.textContent = answer.tokens.length ? `${answer.numDecided} / ${answer.numForwards}` : "–";
    parts.copy.hidden = !answer.text || state === "writing";
    this.picture.draw(answer);
  }

  fail(message) {
    this.parts.error.textContent = message;
    this.parts.error.hidden = !message;
  }
}
