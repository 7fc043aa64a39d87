// Lint rules for the pages' JavaScript (static/js) and for the browser tests. Run: npx eslint
import globals from "globals";

const rules = {
  "no-undef": "error",
  "no-unused-vars": ["error", { args: "after-used", caughtErrors: "none", ignoreRestSiblings: true }],
  "no-redeclare": "error",
  "no-dupe-keys": "error",
  "no-dupe-else-if": "error",
  "no-duplicate-case": "error",
  "no-unreachable": "error",
  "no-fallthrough": "error",
  "no-const-assign": "error",
  "no-self-assign": "error",
  "no-self-compare": "error",
  "no-unsafe-negation": "error",
  "no-unsafe-optional-chaining": "error",
  "no-eval": "error",
  "no-implied-eval": "error",
  "no-new-func": "error",
  "no-var": "error",
  "prefer-const": "error",
  "use-isnan": "error",
  "valid-typeof": "error",
  eqeqeq: ["error", "always", { null: "ignore" }],
};

export default [
  { linterOptions: { reportUnusedDisableDirectives: "error" } },
  {
    files: ["**/static/js/**/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: globals.browser },
    rules: { ...rules, "no-restricted-properties": ["error",
      { property: "innerHTML", message: "text of users must not become HTML: use dom.js" },
      { property: "outerHTML", message: "text of users must not become HTML: use dom.js" },
      { property: "insertAdjacentHTML", message: "text of users must not become HTML: use dom.js" }] },
  },
  // The one place that may: it takes HTML that the server has filtered.
  { files: ["**/static/js/dom.js"], rules: { "no-restricted-properties": "off" } },
  {
    files: ["**/tests/browser/*.mjs"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: { ...globals.node, ...globals.browser } },
    rules,
  },
];
