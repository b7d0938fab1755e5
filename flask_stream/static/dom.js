// Finding, making and filling elements. Text from a server or a model only ever becomes text nodes.

/**
 * Return the page's element with this id. Throws if there is none, or if it is of another kind.
 *
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  return checked(document.getElementById(id), kind, `#${id}`);
}

/**
 * Return the first element in `root` that matches. Throws if there is none of this kind.
 *
 * @template {Element} T
 * @param {ParentNode} root
 * @param {string} selector
 * @param {new () => T} kind
 * @returns {T}
 */
export function find(root, selector, kind) {
  return checked(root.querySelector(selector), kind, selector);
}

/**
 * Return a new copy of what the page's `<template>` with this id holds.
 *
 * @param {string} id
 * @returns {HTMLElement}
 */
export function clone(id) {
  const first = byId(id, HTMLTemplateElement).content.firstElementChild;
  return /** @type {HTMLElement} */ (checked(first, HTMLElement, `#${id}`).cloneNode(true));
}

/**
 * Return a new element with these properties.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Partial<HTMLElementTagNameMap[K]>} properties
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

/**
 * Show an element with this text, or hide it if there is no text.
 *
 * @param {HTMLElement} element
 * @param {string | null} [text]
 */
export function showText(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/**
 * @template {Element} T
 * @param {Element | null} element
 * @param {new () => T} kind
 * @param {string} selector
 * @returns {T}
 */
function checked(element, kind, selector) {
  if (!(element instanceof kind)) throw new Error(`The page has no ${kind.name} ${selector}.`);
  return element;
}
