// Runs before first paint: puts the remembered theme and language on <html>, so nothing flashes.
(() => {
  const root = document.documentElement;
  const read = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // storage blocked: fall back to the system's wishes
    }
  };
  const theme = read('instructd.theme');
  if (theme === 'light' || theme === 'dark') root.dataset.theme = theme;
  const lang = read('instructd.lang') ?? ((navigator.language || 'en').toLowerCase().startsWith('zh') ? 'zh' : 'en');
  root.lang = lang === 'zh' ? 'zh-Hans' : 'en';
})();
