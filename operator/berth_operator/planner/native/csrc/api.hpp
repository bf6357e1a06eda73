// Marks the functions that Python calls.
#pragma once

#define BERTH_API extern "C" __attribute__((visibility("default")))
