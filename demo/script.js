// Storage of conversations, downloads, the panel, keys, and the drawing of attention. No requests to any server.
window.mmchat = (() => {
  const INVISIBLE = /\u200b/g; // rendering.py writes it to keep "<" from being HTML
  const tab = sessionStorage.mmchat ??= crypto.randomUUID ? crypto.randomUUID() : String(Math.random());

  // The conversation of this tab, in IndexedDB: localStorage would end at 5 MB.
  const open = () => new Promise((done, fail) => {
    const request = indexedDB.open("mmchat", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations");
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
  const inStore = async (mode, work) => {
    const database = await open();
    return new Promise((done, fail) => {
      const transaction = database.transaction("conversations", mode);
      const request = work(transaction.objectStore("conversations"));
      transaction.oncomplete = () => { database.close(); done(request.result); };
      transaction.onerror = () => { database.close(); fail(transaction.error); };
    });
  };
  const WEEK = 7 * 24 * 3600 * 1000;
  const store = async (text) => {
    await inStore("readwrite", (all) => all.put({ text, time: Date.now() }, tab));
    await inStore("readwrite", (all) => {
      const cursor = all.openCursor();
      cursor.onsuccess = () => {
        const one = cursor.result;
        if (!one) return;
        if (Date.now() - one.value.time > WEEK) one.delete();
        one.continue();
      };
      return cursor;
    });
  };
  const stored = async () => {
    try { return (await inStore("readonly", (all) => all.get(tab)))?.text ?? ""; } catch { return ""; }
  };

  // Returns an empty text, so that a file is saved once.
  const download = (text) => {
    if (!text) return "";
    const file = JSON.parse(text);
    const bytes = Uint8Array.from(atob(file.data), (one) => one.charCodeAt(0));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], { type: file.type }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return "";
  };

  const toEnd = () => document.querySelectorAll(".chat .bubble-wrap").forEach((one) => { one.scrollTop = one.scrollHeight; });
  const togglePanel = () => {
    const open = document.querySelector(".gradio-container").classList.toggle("with-panel");
    document.querySelector("#panel-button").setAttribute("aria-expanded", open);
    requestAnimationFrame(toEnd); // the chat became smaller: its last answer stays in sight
  };

  const lookAt = (button) => {
    const word = Number(button.dataset.word);
    const looking = button.closest(".looking");
    looking.querySelectorAll(".word").forEach((one) => one.setAttribute("aria-pressed", one === button));
    looking.querySelectorAll("canvas").forEach((canvas) => {
      const { width, height } = canvas, size = width * height;
      const heat = atob(canvas.dataset.heat).slice(word * size, (word + 1) * size);
      const picture = new ImageData(width, height);
      for (let place = 0; place < size; place++) picture.data.set([255, 170, 0, heat.charCodeAt(place) * 0.8], 4 * place);
      canvas.getContext("2d").putImageData(picture, 0, 0);
    });
  };

  document.addEventListener("click", (event) => {
    const word = event.target.closest?.(".looking .word");
    if (word) lookAt(word);
  });
  document.addEventListener("copy", (event) => {
    const text = String(getSelection());
    if (!text.includes("\u200b")) return;
    event.clipboardData.setData("text/plain", text.replace(INVISIBLE, ""));
    event.preventDefault();
  });
  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(text.replace(INVISIBLE, ""));
  }
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea");
    if (event.key === "Escape") document.querySelector(".stop-button")?.click();
    if (event.key === "/" && !typing) {
      document.querySelector("#box textarea")?.focus();
      event.preventDefault();
    }
    if (event.altKey && event.key === "n") document.querySelector("#new")?.click();
    if (event.altKey && event.key === "s") togglePanel();
  });
  return { store, stored, download, togglePanel };
})();
