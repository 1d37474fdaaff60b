"use strict";
// A run is one video or one camera, from its start to its end; starting another one ends it.

const at = (id) => document.getElementById(id);
const WAIT_MS = 30000; // a camera picture that has no answer by then: the server has gone
let about = { longest_px: 640, max_upload_mb: 0, depth_kind: "", colors: [] };
let run = null;

function show(id, text) { at(id).textContent = text; }

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

function begin(state) {
  end("ready");
  fail("");
  run = { stop: new AbortController(), clean: [], arrivals: [], frames: 0 };
  for (const id of ["frame", "size", "latency", "model", "rate"]) show(id, "–");
  show("state", state);
  at("stop").disabled = false;
  at("hint").hidden = true;
  return run;
}

function end(state, text = "", which = run) {
  if (which === null || which !== run) return;
  run = null;
  which.stop.abort();
  for (const clean of which.clean) clean();
  at("stop").disabled = true;
  show("state", state);
  if (text) fail(text);
}

// uint32 length of the JSON | JSON, with the lengths of the pictures | pictures
function parse(bytes) {
  if (bytes.length < 4) return null;
  const head = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  if (bytes.length < 4 + head) return null;
  const info = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + head)));
  const pictures = [];
  let place = 4 + head;
  for (const length of info.pictures) {
    if (bytes.length < place + length) return null;
    pictures.push(new Blob([bytes.slice(place, place + length)], { type: "image/jpeg" }));
    place += length;
  }
  return { info, pictures, used: place };
}

function draw(id, picture) {
  const canvas = at(id);
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

function report(which, info, latencyMs) {
  const now = performance.now();
  which.frames += 1;
  which.arrivals.push(now);
  if (which.arrivals.length > 20) which.arrivals.shift();
  const span = now - which.arrivals[0];
  show("frame", String(info.frame + 1) + (info.reset && info.reset !== "start" ? ` · ${info.reset}` : ""));
  show("size", `${info.size[0]} × ${info.size[1]}`);
  show("latency", `${latencyMs.toFixed(0)} ms`);
  show("model", `${info.model_ms.toFixed(0)} ms`);
  if (span > 0) show("rate", `${(((which.arrivals.length - 1) * 1000) / span).toFixed(1)} /s`);
  const metric = about.depth_kind === "metric_depth_m";
  const word = (near) => (metric ? `${(1 / Math.max(near, 1e-3)).toFixed(1)} m` : near.toPrecision(3));
  show("far", `far ${word(info.near[0])}`);
  show("near", `${word(info.near[1])} near`);
}

async function openVideo(file) {
  const mine = begin("sending");
  if (about.max_upload_mb && file.size > about.max_upload_mb * 1e6) {
    end("refused", `${file.name}: the file is larger than ${about.max_upload_mb} MB`, mine);
    return;
  }
  try {
    const answer = await fetch("api/video", { method: "POST", body: file, signal: mine.stop.signal });
    if (!answer.ok) {
      end("refused", `${file.name}: ${(await answer.json()).error}`, mine);
      return;
    }
    show("state", "video");
    await playMessages(answer.body.getReader(), mine, file.name);
  } catch (error) {
    end("broken off", error.name === "AbortError" ? "" : `the server has gone, or refused the file (${error.message})`, mine);
  }
}

async function playMessages(reader, mine, name) {
  let rest = new Uint8Array(0);
  let startMs = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (mine !== run) return;
    if (done) {
      end("broken off", "the server ended the video", mine);
      return;
    }
    const joined = new Uint8Array(rest.length + value.length);
    joined.set(rest);
    joined.set(value, rest.length);
    rest = joined;
    for (let next = parse(rest); next !== null; next = parse(rest)) {
      rest = rest.subarray(next.used);
      if (next.info.end) {
        end(`done, ${next.info.frames} frames`, next.info.error ? `${name}: ${next.info.error}` : "", mine);
        return;
      }
      const [depth, frame] = await Promise.all(next.pictures.map((blob) => createImageBitmap(blob)));
      // Not faster than the video itself; what is not read yet waits at the server.
      startMs = startMs === null ? performance.now() - next.info.time_s * 1000 : startMs;
      const early = startMs + next.info.time_s * 1000 - performance.now();
      if (early > 0) await new Promise((go) => setTimeout(go, Math.min(early, 1000)));
      if (mine !== run) return;
      draw("input", frame);
      draw("depth", depth);
      report(mine, next.info, next.info.server_ms);
    }
  }
}

async function openCamera() {
  const mine = begin("asking");
  const eye = at("eye");
  try {
    if (!navigator.mediaDevices) throw new Error("a browser gives the camera to https pages and to this machine alone");
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: about.longest_px } }, audio: false });
    mine.clean.push(() => stream.getTracks().forEach((track) => track.stop()));
    if (mine !== run) {
      stream.getTracks().forEach((track) => track.stop());
      return;
    }
    eye.srcObject = stream;
    await eye.play();
  } catch (error) {
    end("no camera", `there is no camera to use: ${error.message}`, mine);
    return;
  }
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/camera`);
  socket.binaryType = "arraybuffer";
  mine.clean.push(() => socket.close());
  socket.onopen = () => { show("state", "camera"); captureAndSend(mine, socket); };
  socket.onclose = (event) =>
    end("broken off", event.code === 1009 ? "the server refuses pictures of this size" : "the server has ended the connection", mine);
  socket.onmessage = (event) => {
    if (typeof event.data === "string") end("refused", JSON.parse(event.data).error, mine);
    else if (mine === run) answered(mine, socket, new Uint8Array(event.data));
  };
}

// One picture is on its way at any time: the next one is taken when its depth is there, so nothing piles up.
async function captureAndSend(mine, socket) {
  const eye = at("eye");
  const scale = Math.min(1, about.longest_px / Math.max(eye.videoWidth, eye.videoHeight));
  const picture = new OffscreenCanvas(Math.round(eye.videoWidth * scale), Math.round(eye.videoHeight * scale));
  picture.getContext("2d").drawImage(eye, 0, 0, picture.width, picture.height);
  mine.sentMs = performance.now();
  mine.picture = picture;
  const blob = await picture.convertToBlob({ type: "image/jpeg", quality: 0.9 });
  if (mine !== run) return;
  socket.send(await blob.arrayBuffer());
  mine.patience = setTimeout(() => end("broken off", "the server does not answer", mine), WAIT_MS);
}

async function answered(mine, socket, bytes) {
  clearTimeout(mine.patience);
  const { info, pictures } = parse(bytes);
  const depth = await createImageBitmap(pictures[0]);
  if (mine !== run) return;
  draw("input", mine.picture);
  draw("depth", depth);
  report(mine, info, performance.now() - mine.sentMs);
  requestAnimationFrame(() => { if (mine === run) captureAndSend(mine, socket); });
}

at("file").onchange = (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) openVideo(file);
};
at("open").onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") at("file").click(); };
at("camera").onclick = openCamera;
at("stop").onclick = () => end("stopped");
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("over"); };
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) openVideo(file);
};

fetch("api/about").then((answer) => answer.json()).then((given) => {
  about = given;
  at("ramp").style.background = `linear-gradient(90deg, ${given.colors.join(", ")})`;
  show("far", "far");
  show("near", "near");
  const kind = given.depth_kind === "metric_depth_m" ? "metric depth" : "relative inverse depth, without a unit";
  show("about", `${kind} · files up to ${given.max_upload_mb} MB · frames are scaled to ${given.longest_px} px`);
}).catch(() => fail("the server does not answer"));
