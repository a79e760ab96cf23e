/** Sizes and times as people read them. */

const UNITS = ["MiB", "GiB", "TiB", "PiB"] as const;

/** "0.4 MiB", "612.0 MiB", "1.3 TiB" */
export function formatBytes(bytes: number): string {
  let amount = bytes / 2 ** 20;
  let unit = 0;
  for (; amount >= 1024 && unit < UNITS.length - 1; unit++) amount /= 1024;
  return `${amount.toFixed(1)} ${UNITS[unit]}`;
}

/** "42 s", "7 min", "3 h 05 min": no finer than an estimate is. */
export function formatSeconds(seconds: number): string {
  if (seconds < 100) return `${Math.ceil(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
