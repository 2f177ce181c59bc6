// Running text, each unit on the colour of its relevance.

/** What `make` builds, `paint` colours again: a slider moves without any element being made. */
class TextView {
  constructor(place, { onRead, onChoose }) {
    this.place = place;
    this.spans = [];
    this.at = 0;
    place.addEventListener("mouseover", (event) => this.read(event, onRead));
    place.addEventListener("focusin", (event) => this.read(event, onRead));
    place.addEventListener("click", (event) => {
      const i = this.indexOf(event.target);
      if (i >= 0) {
        this.spans[i].focus();
        onChoose(this.units, i);
      }
    });
    place.addEventListener("keydown", (event) => this.move(event, onChoose));
  }

  indexOf(element) {
    return element.dataset && element.dataset.i !== undefined ? Number(element.dataset.i) : -1;
  }

  read(event, onRead) {
    const i = this.indexOf(event.target);
    if (i < 0) return;
    if (event.type === "focusin") this.hold(i);
    onRead(this.units, i);
  }

  /** One unit at a time is in the order of the tab key; arrows go on from there. */
  hold(i) {
    if (this.spans[this.at]) this.spans[this.at].tabIndex = -1;
    this.at = i;
    this.spans[i].tabIndex = 0;
  }

  move(event, onChoose) {
    const i = this.indexOf(event.target);
    if (i < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.spans.length - 1;
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: last }[event.key];
    if (to !== undefined && to >= 0 && to <= last) this.spans[to].focus();
    else if (event.key === "Enter" || event.key === " ") onChoose(this.units, i);
    else if (to === undefined) return;
    event.preventDefault();
  }

  make(units) {
    const fragment = document.createDocumentFragment();
    this.spans = Array.from(units.values, (_, i) => {
      const span = document.createElement("span");
      // The space before a word is none of its background.
      const [, space, word] = /^( ?)(.*)$/su.exec(units.text(i));
      const apart = space && word && !word.startsWith(" ");
      span.textContent = apart ? word : space + word;
      if (apart) fragment.append(space);
      span.dataset.i = i;
      span.tabIndex = -1;
      fragment.append(span);
      return span;
    });
    this.place.replaceChildren(fragment);
    this.place.dir = units.item.direction;
    this.at = 0;
    if (this.spans.length) this.spans[0].tabIndex = 0;
  }

  /** Show units, of which those below the threshold get no colour. */
  show(units, scale, threshold, explained) {
    const same = this.units && this.units.item === units.item;
    if (!same || this.units.starts.length !== units.starts.length) this.make(units);
    this.units = units;
    const explains = units.item.explains;
    for (let i = 0; i < this.spans.length; i++) {
      let name = className(units, i, scale, threshold);
      const token = units.ends[i] - 1;
      if (explains.has(token)) {
        name += explains.get(token) === explained ? " explains explained" : " explains";
      }
      if (this.spans[i].className !== name) this.spans[i].className = name;
    }
  }
}
