/* The texts of the .ini files in profiles/, built into the program (cmake/profiles.cmake); a NULL name ends the list. */
#ifndef PD_PROFILE_PROFILE_DATA_H
#define PD_PROFILE_PROFILE_DATA_H

struct profile_data {
    const char *name, *text;
};
extern const struct profile_data profile_data[];

#endif
