/** The whole story, with kill -9 and a promotion in it, on PostgreSQL 15. */
import { tellTheStoryOn } from "../support/story-of-a-major.ts";

await tellTheStoryOn(15);
