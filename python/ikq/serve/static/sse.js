// Server-sent events, cut out of a stream of text.

export class EventParser {
  #held = "";
  #data = [];

  // Takes more text; returns the data of the events that are complete.
  push(text) {
    this.#held += text;
    const events = [];
    for (;;) {
      const end = this.#held.search(/[\r\n]/);
      // a "\r" at the end may be half of "\r\n"
      if (end < 0 || (this.#held[end] === "\r" && end === this.#held.length - 1)) return events;
      const line = this.#held.slice(0, end);
      this.#held = this.#held.slice(this.#held.startsWith("\r\n", end) ? end + 2 : end + 1);
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
      // comments, and names of events, which the APIs that are used here do not give
    }
  }
}
