/* The slots of a prompt as chips: edit, add, take off, move by button, arrow key or mouse. */
(() => {
  if (window.dpxSlots) return;

  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };

  window.dpxSlots = (element, props, watch, tell) => {
    const root = element.querySelector(".dpx-slots");
    let items = [], timer = 0, dragged = null;

    const say = (wait = 0) => { clearTimeout(timer); timer = setTimeout(() => tell({ items }), wait); };
    const focus = (index, part) => root.querySelector(`li:nth-child(${index + 1}) ${part}`)?.focus();
    const move = (from, to, part) => {
      if (to < 0 || to >= items.length) return;
      items.splice(to, 0, ...items.splice(from, 1));
      draw(); focus(to, part); say();
    };
    const remove = (index) => { items.splice(index, 1); draw(); focus(Math.min(index, items.length - 1), ".is-off"); say(); };
    const add = (kind) => {
      items.push({ kind, text: "", count: 1 });
      draw(); focus(items.length - 1, "input"); say();
    };

    function field(slot, index) {
      if (slot.kind === "text") {
        const input = make("input", { type: "text", value: slot.text, placeholder: "fixed text", spellcheck: false });
        input.setAttribute("aria-label", `Fixed text of slot ${index + 1}`);
        const fit = () => (input.style.width = `${Math.max(4, Math.min(28, input.value.length + 2))}ch`);
        fit();
        input.addEventListener("input", () => { slot.text = input.value; fit(); say(250); });
        return [input];
      }
      const input = make("input", { type: "number", min: 1, value: slot.count });
      input.setAttribute("aria-label", `${slot.kind} tokens of slot ${index + 1}`);
      input.addEventListener("input", () => {
        const count = parseInt(input.value, 10);
        if (count >= 1) { slot.count = count; say(250); }
      });
      return [make("span", { textContent: slot.kind }), make("span", { textContent: "×" }), input];
    }

    function chip(slot, index) {
      const button = (text, label, css, act) => {
        const b = make("button", { type: "button", textContent: text, className: css, onclick: act });
        b.setAttribute("aria-label", `${label} slot ${index + 1}`);
        return b;
      };
      const item = make("li", { className: `dpx-slot is-${slot.kind}`, draggable: true },
        button("‹", "Move left", "is-left", () => move(index, index - 1, ".is-left")), ...field(slot, index),
        button("›", "Move right", "is-right", () => move(index, index + 1, ".is-right")),
        button("×", "Take off", "is-off", () => remove(index)));
      item.addEventListener("keydown", (event) => {
        if (!event.altKey || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
        event.preventDefault();
        move(index, index + (event.key === "ArrowLeft" ? -1 : 1), "input");
      });
      item.addEventListener("dragstart", () => (dragged = index));
      item.addEventListener("dragover", (event) => event.preventDefault());
      item.addEventListener("drop", (event) => { event.preventDefault(); if (dragged !== null) move(dragged, index, "input"); dragged = null; });
      return item;
    }

    const list = make("ol");
    list.setAttribute("aria-label", "The prompt's slots, in order");
    const adders = make("span", { className: "dpx-slot-add" }, ...["text", "soft", "hard"].map((kind) =>
      make("button", { type: "button", textContent: `+ ${kind}`, onclick: () => add(kind) })));
    root.replaceChildren(list, adders);
    function draw() { list.replaceChildren(...items.map(chip)); }

    const take = () => {
      if (root.contains(document.activeElement)) return; // in the hand: what comes back is what it said
      const now = JSON.parse(props.value || "[]");
      items = now;
      draw();
    };
    watch("value", take);
    take();
  };
})();
