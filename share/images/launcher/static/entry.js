// The entry "My GPU" in JupyterLab's launcher: opens the lab's page of this server in a new tab.
//
// A prebuilt extension by hand: a container of webpack's module federation is an object with init()
// and get(), and this one needs two of JupyterLab's own modules and no build. Files alone: the
// single-user server imports nothing for it.

(() => {
  const NAME = "@pytorch-spawner/my-gpu";
  const COMMAND = "pytorch-spawner:my-gpu";
  // A chip with its pins; JupyterLab colours it like its own icons, light and dark.
  const ICON =
    '<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">' +
    '<g class="jp-icon3" fill="#616161"><path d="M7 2h2v3h2V2h2v3h2V2h2v3h1a1 1 0 0 1 1 1v1h3v2h-3v2h3v2h-3v2h3v2h-3v1' +
    "a1 1 0 0 1-1 1h-1v3h-2v-3h-2v3h-2v-3H9v3H7v-3H6a1 1 0 0 1-1-1v-1H2v-2h3v-2H2v-2h3V9H2V7h3V6a1 1 0 0 1 1-1h1z" +
    'M8 8v8h8V8z"/></g></svg>';
  let shared = null;

  // A module of JupyterLab's own; of several versions whichever it runs with.
  async function take(name) {
    const versions = Object.values(shared?.[name] ?? {});
    const chosen = versions.find(({ loaded }) => loaded) ?? versions.at(-1);
    return chosen ? (await chosen.get())() : null;
  }

  // Where the lab's page of this server is; null outside of a hub.
  function pageUrl() {
    const element = document.getElementById("jupyter-config-data");
    const { hubPrefix, hubHost = "", hubUser, hubServerName = "" } = JSON.parse(element?.textContent || "{}");
    if (!hubPrefix || !hubUser) return null;
    const server = [hubUser, hubServerName].map(encodeURIComponent).join("/");
    return `${hubHost}${hubPrefix.replace(/hub\/?$/, "")}services/lab/servers/${server}#memory`;
  }

  function plugin(ILauncher, LabIcon) {
    return {
      id: `${NAME}:plugin`,
      description: "The entry My GPU in the launcher.",
      autoStart: true,
      requires: [ILauncher],
      activate: ({ commands }, launcher) => {
        const url = pageUrl();
        if (!url) return;
        commands.addCommand(COMMAND, {
          label: "My GPU",
          caption: "What your notebooks hold, and whether your GPU is healthy",
          icon: new LabIcon({ name: COMMAND, svgstr: ICON }),
          execute: () => {
            window.open(url, "_blank", "noopener");
          },
        });
        launcher.add({ command: COMMAND, category: "Other", rank: 2 });
      },
    };
  }

  async function get() {
    const [launcher, components] = await Promise.all([take("@jupyterlab/launcher"), take("@jupyterlab/ui-components")]);
    // Without a launcher there is no place for an entry.
    const plugins = launcher && components ? [plugin(launcher.ILauncher, components.LabIcon)] : [];
    return () => ({ __esModule: true, default: plugins });
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = {
    init: (scope) => {
      shared = scope;
    },
    get,
  };
})();
