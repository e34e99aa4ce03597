// What the theme leaves to keyboards and screen readers: code and tables that scroll, captions, landmarks with names.
for (const box of document.querySelectorAll("pre, .table-wrapper")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
for (const caption of document.querySelectorAll(".caption[role=heading]")) caption.setAttribute("aria-level", "2");
const names = { ".sidebar-drawer": "Pages", ".toc-drawer": "On this page" };
for (const [selector, name] of Object.entries(names)) document.querySelector(selector)?.setAttribute("aria-label", name);
