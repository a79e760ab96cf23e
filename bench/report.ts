/** Figures → tables, and tables → bench/README.md. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Sample } from "./measure.ts";
import type { Series } from "./rounds.ts";

export interface Table {
  readonly title: string;
  /** What the command reads or writes, for its throughput; left out where it has none. */
  readonly contentBytes?: number;
  readonly series: readonly Series[];
}

const README = join(import.meta.dir, "README.md");
/** What is measured and written by itself. */
export type Part = "figures" | "backup figures" | "WAL figures";
const MiB = 2 ** 20;

/** The first series is wal-b's; the others are compared with it. */
export function formatTable({ title, contentBytes, series }: Table): string {
  const own = series[0];
  if (own === undefined) return "";
  const isSlow = median(own.samples.map(({ wallMs }) => wallMs)) >= 1_000;
  const isCpuKnown = series.some(({ samples }) => samples.some(({ cpuMs }) => cpuMs !== undefined));
  const throughput = isSlow && contentBytes ? ["MiB/s"] : [];
  const columns = ["", "wall", "lowest–highest", ...throughput, ...(isCpuKnown ? ["CPU"] : []), "peak memory"];
  const isStored = series.some(({ storedBytes }) => storedBytes !== undefined);
  const head = [...columns, ...(isStored ? ["stored"] : []), "wal-b ÷ this"];

  const row = ({ peer, samples, storedBytes }: Series) => {
    const walls = samples.map(({ wallMs }) => wallMs);
    const wallMs = median(walls);
    return [
      peer,
      formatMs(wallMs),
      `${formatMs(Math.min(...walls))}–${formatMs(Math.max(...walls))}`,
      ...(isSlow && contentBytes ? [(contentBytes / MiB / (wallMs / 1_000)).toFixed(0)] : []),
      ...(isCpuKnown ? [formatMs(medianOf(samples, ({ cpuMs }) => cpuMs))] : []),
      `${(medianOf(samples, ({ peakBytes }) => peakBytes) / MiB).toFixed(0)} MiB`,
      ...(isStored ? [storedBytes === undefined ? "" : `${(storedBytes / MiB).toFixed(isSlow ? 0 : 2)} MiB`] : []),
      peer === own.peer ? "" : ratio(own.samples, samples).toFixed(2),
    ];
  };
  return `### ${title}\n\n${markdown(head, series.map(row))}\n`;
}

/** Keeps what people wrote around the figures. */
export async function writeReadme(part: Part, figures: string): Promise<void> {
  const beginMark = `<!-- ${part}: written by bench/run.ts --write -->`;
  const endMark = `<!-- end of ${part} -->`;
  const text = await readFile(README, "utf8");
  const [begin, end] = [text.indexOf(beginMark), text.indexOf(endMark)];
  if (begin === -1 || end < begin) throw new Error(`${README} has no place for figures: ${beginMark} … ${endMark}`);
  await writeFile(README, `${text.slice(0, begin + beginMark.length)}\n\n${figures.trim()}\n\n${text.slice(end)}`);
}

/** Of wall times in the same round, the median. */
function ratio(own: readonly Sample[], other: readonly Sample[]): number {
  return median(own.map(({ wallMs }, round) => wallMs / (other[round]?.wallMs ?? Number.NaN)));
}

function medianOf(samples: readonly Sample[], value: (sample: Sample) => number | undefined): number {
  return median(samples.map((sample) => value(sample) ?? Number.NaN));
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low = Number.NaN, high = Number.NaN] = [sorted[sorted.length % 2 === 0 ? middle - 1 : middle], sorted[middle]];
  return (low + high) / 2;
}

function formatMs(ms: number): string {
  if (ms >= 1_000) return `${(ms / 1_000).toFixed(2)} s`;
  return `${ms.toFixed(ms < 100 ? 1 : 0)} ms`;
}

/** Columns of even width, the first to the left and numbers to the right, as the formatter of this repository wants them. */
function markdown(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((_, column) => Math.max(3, ...[head, ...rows].map((cells) => cells[column]?.length ?? 0)));
  const pad = (text: string, column: number) => {
    const width = widths[column] ?? 0;
    return column === 0 ? text.padEnd(width) : text.padStart(width);
  };
  const rule = widths.map((width, column) => (column === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`));
  return [head.map(pad), rule, ...rows.map((cells) => cells.map(pad))]
    .map((cells) => `| ${cells.join(" | ")} |`)
    .join("\n");
}
