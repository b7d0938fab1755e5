import js from "@eslint/js";

export default [
  js.configs.recommended,
  {
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "no-undef": "off", // the type checker finds undefined names, and knows the browser's
      eqeqeq: "error",
      "no-var": "error",
      "prefer-const": "error",
      "no-restricted-properties": [
        "error",
        { property: "innerHTML", message: "A model's text must never become HTML." },
        { property: "outerHTML", message: "A model's text must never become HTML." },
        { property: "insertAdjacentHTML", message: "A model's text must never become HTML." },
      ],
    },
  },
];
