#pragma once

namespace contrastive::tools {

/// Memory of this process in bytes: resident now, and at most so far. NaN where the system does not tell.
double resident_memory();
double peak_memory();

/// The peak starts anew at what is in use now, where the system allows it.
void reset_peak_memory();

}  // namespace contrastive::tools
