/** The whole story, with kill -9 and a promotion in it, on PostgreSQL 18. */
import { tellTheStoryOn } from "../support/story-of-a-major.ts";

await tellTheStoryOn(18);
