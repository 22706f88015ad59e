// Plays one sound at a time, from its beginning; whoever stops a sound has not heard it.

const HEARD_SHARE = 0.9; // of the sound: players count the last samples differently

export class Player {
  constructor(onChange) {
    this.audio = new Audio(); // one for all sounds: phones allow it to play after the first touch
    this.onChange = onChange;
    this.playing = null;
    this.blobs = new Map();
    this.finish = null;
    this.audio.addEventListener("timeupdate", () => onChange());
    this.audio.addEventListener("ended", () => this.end(this.wasHeard()));
    this.audio.addEventListener("error", () => this.playing && this.end(false));
  }

  has(name) {
    return this.blobs.has(name);
  }

  keep(name, blob) {
    if (!this.blobs.has(name)) this.blobs.set(name, URL.createObjectURL(blob));
  }

  forgetAllBut(names) {
    for (const [name, url] of this.blobs) {
      if (names.includes(name)) continue;
      URL.revokeObjectURL(url);
      this.blobs.delete(name);
    }
  }

  get share() {
    return this.playing && this.audio.duration ? this.audio.currentTime / this.audio.duration : 0;
  }

  // Whether the whole sound was played; media keys can jump to the end.
  wasHeard() {
    let seconds = 0;
    for (let i = 0; i < this.audio.played.length; i += 1) seconds += this.audio.played.end(i) - this.audio.played.start(i);
    return seconds >= HEARD_SHARE * this.audio.duration;
  }

  // Plays to the end; true if it was heard, false if it was stopped.
  play(name) {
    this.stop();
    return new Promise((resolve, reject) => {
      this.playing = name;
      this.finish = resolve;
      this.audio.src = this.blobs.get(name);
      this.audio.playbackRate = 1;
      this.audio.play().catch((error) => {
        if (error.name === "AbortError") return; // stopped before it began
        this.playing = null;
        this.finish = null;
        this.onChange();
        reject(error);
      });
      this.onChange();
    });
  }

  stop() {
    if (!this.playing) return;
    this.audio.pause();
    this.end(false);
  }

  end(heard) {
    const finish = this.finish;
    this.playing = null;
    this.finish = null;
    this.onChange();
    if (finish) finish(heard);
  }
}
