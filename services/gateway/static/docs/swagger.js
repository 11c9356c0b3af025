SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  filter: true,
  validatorUrl: null, // it would send the document to somebody else's server
  presets: [SwaggerUIBundle.presets.apis],
});
