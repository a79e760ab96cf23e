/** The whole story, with kill -9 and a promotion in it, on PostgreSQL 17. */
import { tellTheStoryOn } from "../support/story-of-a-major.ts";

await tellTheStoryOn(17);
