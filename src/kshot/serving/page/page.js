// The page of a service: galleries, classes, answers. Everything goes through the same interface that programs use.

const MOST_PICTURES = 8; // in one request
const LARGE_BYTES = 3e6; // beyond it a photo is made smaller before it is sent
const LARGEST_SIDE = 2000; // pixels

const at = (id) => document.getElementById(id);
const quoted = encodeURIComponent;
let gallery = "";

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function fail(error) {
  at("error").textContent = error.message;
  at("error").hidden = false;
  at("status").textContent = "";
}

function say(words) {
  at("error").hidden = true;
  at("status").textContent = words;
}

async function ask(method, path, body = undefined) {
  const headers = body === undefined || body instanceof FormData ? {} : { "Content-Type": "application/json" };
  const sent = body === undefined || body instanceof FormData ? body : JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, { method, headers, body: sent });
  } catch {
    throw new Error("The service does not answer. Is it running, and are you connected?");
  }
  const text = await response.text();
  const found = text ? JSON.parse(text) : {};
  if (!response.ok) throw new Error(found.detail || `The service answers with ${response.status}.`);
  return found;
}

// Pictures

async function smaller(file) {
  if (file.size <= LARGE_BYTES || !file.type.startsWith("image/")) return file;
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST_SIDE / Math.max(picture.width, picture.height));
    const canvas = make("canvas", { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob((blob) => done(blob ?? file), "image/jpeg", 0.92));
  } catch {
    return file; // the service says what is wrong with it
  }
}

async function send(method, path, files, each) {
  const progress = at("progress");
  Object.assign(progress, { hidden: false, value: 0, max: files.length });
  try {
    for (let start = 0; start < files.length; start += MOST_PICTURES) {
      const part = files.slice(start, start + MOST_PICTURES);
      const form = new FormData();
      for (const file of part) form.append("items", await smaller(file), file.name || "picture");
      each(await ask(method, path, form), part);
      progress.value = start + part.length;
    }
  } finally {
    progress.hidden = true;
  }
}

function takesFiles(drop, input, take) {
  const given = (files) => {
    const list = [...files];
    if (list.length) take(list).catch(fail);
  };
  input.addEventListener("change", () => {
    given(input.files);
    input.value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    given(event.dataTransfer.files);
  });
}

const pathOf = (name = gallery) => `/v1/galleries/${quoted(name)}`;
const classPath = (name) => `${pathOf()}/classes/${quoted(name)}`;
const pictureOf = (name, id) => `${classPath(name)}/examples/${id}`;

// Galleries

async function showGalleries(chosen = gallery) {
  const { galleries } = await ask("GET", "/v1/galleries");
  gallery = galleries.includes(chosen) ? chosen : (galleries[0] ?? "");
  at("gallery").replaceChildren(...galleries.map((name) => make("option", { value: name, textContent: name, selected: name === gallery })));
  at("gallery").disabled = !galleries.length;
  at("delete-gallery").disabled = !gallery;
  await showClasses();
}

async function ensureGallery() {
  if (!gallery) {
    await ask("PUT", pathOf("my-gallery"));
    await showGalleries("my-gallery");
  }
}

// Classes

async function showClasses() {
  at("quality").replaceChildren();
  at("check").disabled = true;
  if (!gallery) {
    at("classes").replaceChildren();
    at("hint").textContent = "Name a class and choose a few pictures of it.";
    return;
  }
  const { classes } = await ask("GET", pathOf());
  at("classes").replaceChildren(...classes.map(classCard));
  at("check").disabled = classes.length < 2;
  at("hint").textContent = classes.length < 2 ? `${2 - classes.length} more class${classes.length ? "" : "es"} until you can ask.` : "";
}

function classCard({ class: name, examples }) {
  const input = make("input", { type: "file", multiple: true, accept: "image/*" });
  const drop = make("label", { className: "drop" }, input, make("span", { textContent: "Add pictures" }));
  takesFiles(drop, input, (files) => addPictures(name, files));
  const thumbs = examples.map(({ id }, number) =>
    make(
      "li",
      {},
      make("img", { src: pictureOf(name, id), alt: `Example ${number + 1} of ${name}`, loading: "lazy" }),
      button("\u00d7", `Remove example ${number + 1} of ${name}`, () => removed("DELETE", pictureOf(name, id))),
    ),
  );
  const rename = button("Rename", `Rename ${name}`, async () => {
    const after = prompt(`Another name for ${name}`, name);
    if (after && after !== name) {
      await ask("POST", `${classPath(name)}/rename`, { to: after });
      say(`${name} is called ${after} now.`);
      await showClasses();
    }
  });
  const remove = button("Delete", `Delete ${name}`, async () => {
    if (confirm(`Delete ${name} and its ${examples.length} pictures?`)) await removed("DELETE", classPath(name));
  });
  for (const node of [rename, remove]) node.className = "quiet small";
  return make(
    "article",
    { className: "card" },
    make("h3", { textContent: name }),
    make("ul", { className: "thumbs" }, ...thumbs),
    drop,
    make("div", { className: "row" }, rename, remove),
  );
}

function button(words, label, act) {
  const node = make("button", { type: "button", textContent: words, ariaLabel: label });
  node.addEventListener("click", () => Promise.resolve(act()).catch(fail));
  return node;
}

async function removed(method, path) {
  await ask(method, path);
  say("Removed.");
  await showClasses();
}

async function addPictures(name, files) {
  await ensureGallery();
  say(`Sending ${files.length} picture${files.length === 1 ? "" : "s"} of ${name} ...`);
  try {
    await send("PUT", `${classPath(name)}/examples`, files, () => {});
    say(`${name} has ${files.length === 1 ? "another picture" : `${files.length} more pictures`}.`);
  } finally {
    await showClasses();
  }
}

async function showQuality() {
  say("Asking about each picture without itself ...");
  const found = await ask("GET", `${pathOf()}/quality`);
  say("");
  if (found.accuracy === null) {
    at("quality").replaceChildren(make("p", { textContent: "Classes of one picture cannot be tried. Add a second picture to each." }));
    return;
  }
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const rows = found.confused.map(({ class: name, told, times }) =>
    make("tr", {}, ...[name, told, `${times} time${times === 1 ? "" : "s"}`].map((textContent) => make("td", { textContent }))),
  );
  const head = make("tr", {}, ...["Class", "Taken for", ""].map((textContent) => make("th", { textContent, scope: "col" })));
  const change = found.change;
  at("quality").replaceChildren(
    make("p", { textContent: `Of ${found.examples} pictures, ${percent(found.accuracy)} are known by the others (95 % interval: ${percent(found.interval[0])} to ${percent(found.interval[1])}).` }),
    change ? make("p", { textContent: `The model before this one knew ${percent(change.accuracy_before)} of ${change.examples}: this one is ${change.verdict}.` }) : null ?? "",
    rows.length ? make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)) : "",
  );
}

// Answers

async function askAbout(files) {
  if (!gallery) throw new Error("There is no gallery yet: show a few pictures of two classes first.");
  say(`Asking about ${files.length} picture${files.length === 1 ? "" : "s"} ...`);
  await send("POST", `${pathOf()}/classify`, files, ({ answers }, part) => {
    at("answers").prepend(...answers.map((answer, number) => answerCard(answer, part[number])));
  });
  say("");
}

function answerCard(answer, file) {
  const percent = `${(100 * answer.probability).toFixed(1)} %`;
  const none = answer.unknown === true;
  const asked = make("img", { src: URL.createObjectURL(file), alt: `Asked: ${file.name}` });
  const near = answer.nearest;
  const pair = make(
    "div",
    { className: "pair" },
    make("figure", {}, asked, make("figcaption", { textContent: "asked" })),
    near
      ? make("figure", {}, make("img", { src: pictureOf(near.class, near.id), alt: `Nearest example, of ${near.class}` }), make("figcaption", { textContent: "nearest" }))
      : null,
  );
  const words = none
    ? make("p", { className: "answer none", textContent: "None of these" })
    : make("p", { className: "answer", textContent: answer.class });
  const detail = none ? `most like ${answer.class}, but like no class enough` : `${percent} likely`;
  const card = make("article", { className: "card" }, pair, words);
  if (!none) card.append(make("meter", { min: 0, max: 1, value: answer.probability, ariaLabel: `Probability of ${answer.class}: ${percent}` }));
  card.append(make("p", { className: "soft", textContent: detail }));
  if (answer.id) card.append(correction(answer));
  return card;
}

function correction(answer) {
  const node = button("Wrong?", `Say what this picture really is; the answer was ${answer.class}`, async () => {
    const right = prompt("Which class is it really?", answer.unknown ? answer.class : "");
    if (right) {
      await ask("POST", "/v1/feedback", { id: answer.id, class: right });
      node.replaceWith(make("p", { className: "soft", textContent: `Noted: ${right}` }));
    }
  });
  node.className = "quiet small";
  return node;
}

// Beginning

at("gallery").addEventListener("change", () => {
  gallery = at("gallery").value;
  at("answers").replaceChildren();
  showClasses().catch(fail);
});
at("choose").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = at("new-gallery").value.trim();
  if (!name) return at("new-gallery").focus();
  try {
    await ask("PUT", pathOf(name));
    at("new-gallery").value = "";
    say(`${name} is there.`);
    await showGalleries(name);
    at("class-name").focus();
  } catch (error) {
    fail(error);
  }
});
at("delete-gallery").addEventListener("click", async () => {
  if (!gallery || !confirm(`Delete the gallery ${gallery} and all its pictures?`)) return;
  try {
    await ask("DELETE", pathOf());
    say("Deleted.");
    await showGalleries("");
  } catch (error) {
    fail(error);
  }
});
at("add").addEventListener("submit", (event) => event.preventDefault());
takesFiles(at("class-drop"), at("class-files"), async (files) => {
  const name = at("class-name").value.trim();
  if (!name) {
    at("class-name").focus();
    throw new Error("Name the class first.");
  }
  await addPictures(name, files);
  at("class-name").value = "";
});
takesFiles(at("ask-drop"), at("ask-files"), askAbout);
at("check").addEventListener("click", () => showQuality().catch(fail));

try {
  const { model, takes } = await ask("GET", "/v1/model");
  at("model").textContent = `${model} answers; it sees ${takes}`;
  await showGalleries();
} catch (error) {
  fail(error);
}
