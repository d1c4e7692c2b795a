/* The invitation to the first minute: shown until it was followed or skipped in this browser. */
(() => {
  if (window.dpxFirstMinute) return;
  window.dpxFirstMinute = true;
  const KEY = "dpx-first-minute";
  // A style of the document's own: Gradio keeps the page's CSS from matching classes of the body.
  const invitation = Object.assign(document.createElement("style"), { textContent: ".dpx-invitation { display: flex !important; }" });
  const seen = () => { try { return Boolean(localStorage.getItem(KEY)); } catch { return true; } };
  const remember = () => {
    try { localStorage.setItem(KEY, "seen"); } catch { /* private windows */ }
    invitation.remove();
  };
  const open = (name) => {
    const tabs = [...document.querySelectorAll("#nav > .tab-wrapper button[role=tab]")];
    tabs.find((tab) => tab.textContent.trim() === name)?.click();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-first-minute], [data-skip], #first-go");
    if (!button) return;
    remember();
    if (button.dataset.firstMinute !== undefined) open("First minute");
    else if (button.dataset.skip !== undefined) open("Explore");
  });
  const start = () => {
    const arrived = /[?&](d|run|view|hide)=/.test(location.search); // somebody sent this page somewhere
    if (!seen() && !arrived) document.head.append(invitation);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
