#pragma once

#include <functional>

#include "contrastive/distributed/process_group.h"

namespace contrastive::test {

/// Runs `body` in `ranks` processes that are connected over Gloo, each a new start of this test program with this test
/// only. Whatever fails in one of them fails the call, with that process's output. In those processes the rest of the
/// test runs too; other calls of run_on_ranks do nothing there.
void run_on_ranks(int ranks, const std::function<void(const distributed::ProcessGroup&)>& body);

/// Whether this process is one of those.
bool is_rank();

}  // namespace contrastive::test
