#include "contrastive/distributed/rank_environment.h"

#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "contrastive/core/error.h"

namespace contrastive::distributed {
namespace {

using Names = std::vector<std::string>;

const Names kRankNames{"RANK", "PMI_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"};
const Names kWorldSizeNames{"WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"};
const Names kLocalRankNames{"LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"};
const Names kLocalWorldSizeNames{"LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"};

constexpr int64_t kMaxRanks = 1'000'000;
constexpr int64_t kMaxPort = 65'535;
// Ports that are derived from a job's name lie below those that Linux gives to outgoing connections (32768 on).
constexpr int64_t kFirstJobPort = 12'000;
constexpr int64_t kJobPorts = 20'000;

struct Number {
  std::string name;
  int64_t value;
};

/// The environment, in which an empty variable is one that is not set.
class Variables {
 public:
  explicit Variables(const EnvironmentReader& variable) : variable_(variable), is_srun_task_(find_srun_task()) {}

  /// Several tasks of srun were started, and this process is one of them.
  bool is_srun_task() const { return is_srun_task_; }

  std::optional<std::string> text(const std::string& name) const {
    auto value = variable_(name);
    return value && !value->empty() ? value : std::nullopt;
  }

  bool is(const std::string& name, std::string_view value) const { return text(name) == value; }

  std::optional<Number> number(const std::string& name, int64_t min, int64_t max) const {
    const auto value = text(name);
    if (!value) return std::nullopt;
    int64_t number = 0;
    const char* last = value->data() + value->size();
    const auto [end, error] = std::from_chars(value->data(), last, number);
    if (error != std::errc() || end != last || number < min || number > max) {
      throw ConfigError(
          fmt::format("[launch] {} is \"{}\", but must be an integer in [{}, {}]", name, *value, min, max));
    }
    return Number{name, number};
  }

  /// The first one that is set; SLURM's only in its tasks.
  std::optional<Number> first_number(const Names& names, int64_t min, int64_t max) const {
    for (const auto& name : names) {
      if (name.starts_with("SLURM_") && !is_srun_task_) continue;
      if (auto found = number(name, min, max)) return found;
    }
    return std::nullopt;
  }

  std::optional<std::string> first_text(std::initializer_list<const char*> names) const {
    for (const auto* name : names) {
      if (auto found = text(name)) return found;
    }
    return std::nullopt;
  }

 private:
  /// SLURM's counts of tasks and its rank 0 are also there where nobody starts the others, who would be waited for.
  bool find_srun_task() const {
    if (!text("SLURM_PROCID")) return false;  // in a shell of salloc
    // mpirun is started by, or starts its own processes as, tasks of SLURM: how many of these there are means nothing.
    if (first_text({"OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID"})) return false;
    // srun --pty gives its terminal to task 0; other shells end at once. An srun inside of it removes the variable.
    if (text("SLURM_PTY_PORT") && is("SLURM_PROCID", "0")) return false;
    // A step of sbatch's script inherits ENVIRONMENT=BATCH, but has a step's number.
    if (!first_text({"SLURM_STEP_ID", "SLURM_STEPID"})) return !is("ENVIRONMENT", "BATCH");
    // The step's variables may be another's: of the step in which sbatch was called, or of salloc's shell, one task.
    const auto tasks_of_step = text("SLURM_STEP_NUM_TASKS");
    return !tasks_of_step || tasks_of_step == text("SLURM_NTASKS");
  }

  const EnvironmentReader& variable_;
  bool is_srun_task_;
};

/// Reads SLURM's "4(x2),3": four tasks on each of two nodes, then three.
class TaskList {
 public:
  TaskList(std::string name, std::string_view list) : name_(std::move(name)), list_(list), rest_(list) {}

  std::optional<int64_t> tasks_of(int64_t node) {
    do {
      const auto tasks = read_count();
      int64_t nodes = 1;
      if (skip("(x")) {
        nodes = read_count();
        if (!skip(")")) fail();
      }
      if (node < nodes) return tasks;
      node -= nodes;
    } while (skip(","));
    if (!rest_.empty()) fail();
    return std::nullopt;
  }

 private:
  [[noreturn]] void fail() const {
    throw ConfigError(fmt::format("[launch] {} is \"{}\", but must look like \"4(x2),3\"", name_, list_));
  }

  int64_t read_count() {
    int64_t count = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), count);
    if (error != std::errc() || count < 1 || count > kMaxRanks) fail();
    rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
    return count;
  }

  bool skip(std::string_view text) {
    if (!rest_.starts_with(text)) return false;
    rest_.remove_prefix(text.size());
    return true;
  }

  std::string name_;
  std::string_view list_;
  std::string_view rest_;
};

std::optional<int64_t> srun_local_world_size(const Variables& variables) {
  const auto node = variables.number("SLURM_NODEID", 0, kMaxRanks);
  for (const auto* name : {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}) {
    const auto list = variables.text(name);
    if (!list || !node) continue;
    if (const auto tasks = TaskList(name, *list).tasks_of(node->value)) return tasks;
  }
  const auto same_on_all = variables.number("SLURM_NTASKS_PER_NODE", 1, kMaxRanks);
  return same_on_all ? std::optional(same_on_all->value) : std::nullopt;
}

std::string launcher_of(const Variables& variables, const std::string& rank_variable) {
  if (variables.is("CONTRASTIVE_STORE_IS_HOSTED", "1")) return "clip_train";
  if (rank_variable == "RANK") return variables.text("TORCHELASTIC_RUN_ID") ? "torchrun" : "environment";
  return variables.is_srun_task() ? "srun" : "mpirun";
}

bool is_this_machine(const std::string& address) {
  return address == "localhost" || address == "::1" || address.starts_with("127.");
}

/// What the launcher says, or nothing where it leaves that open.
std::optional<int64_t> told_local_world_size(const Variables& variables, const RankEnvironment& ranks) {
  if (const auto told = variables.first_number(kLocalWorldSizeNames, 1, kMaxRanks)) {
    if (told->value > ranks.world_size) {
      throw ConfigError(
          fmt::format("[launch] {} is {}, but there are {} ranks", told->name, told->value, ranks.world_size));
    }
    return told->value;
  }
  if (ranks.launcher != "srun") return std::nullopt;
  const auto tasks = srun_local_world_size(variables);
  return tasks && *tasks <= ranks.world_size ? tasks : std::nullopt;
}

void read_local_ranks(const Variables& variables, RankEnvironment& ranks) {
  const auto address = variables.text("MASTER_ADDR");
  auto size = told_local_world_size(variables, ranks);
  if (!size && address && is_this_machine(*address)) size = ranks.world_size;
  const auto local = variables.first_number(kLocalRankNames, 0, ranks.world_size - 1);
  if (size && local && local->value >= *size) {
    throw ConfigError(
        fmt::format("[launch] {} is {}, but this machine has {} ranks", local->name, local->value, *size));
  }
  ranks.local_world_size = size.value_or(local ? local->value + 1 : 1);
  ranks.local_rank = local ? local->value : ranks.rank % ranks.local_world_size;
}

std::string master_address(const Variables& variables, const RankEnvironment& ranks) {
  if (auto address = variables.text("MASTER_ADDR")) return *address;
  if (ranks.local_world_size == ranks.world_size) return "127.0.0.1";
  if (ranks.launcher == "srun") {
    // A step may have fewer nodes than its job; task 0 is on its first one.
    const auto list = variables.first_text({"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"});
    if (list) return expand_node_list(*list).front();
  }
  throw ConfigError(
      fmt::format("[launch] rank {} of {}: MASTER_ADDR is not set; export the address of the machine of rank 0 "
                  "(127.0.0.1 if all ranks are on this one)",
                  ranks.rank, ranks.world_size));
}

/// The same on all ranks, and hardly that of another job on the same machine.
int port_of_job(const std::string& job) {
  uint64_t hash = 14'695'981'039'346'656'037U;  // FNV-1a
  for (const char byte : job) hash = (hash ^ static_cast<unsigned char>(byte)) * 1'099'511'628'211U;
  return static_cast<int>(kFirstJobPort + static_cast<int64_t>(hash % kJobPorts));
}

int master_port(const Variables& variables, const RankEnvironment& ranks) {
  if (const auto port = variables.number("MASTER_PORT", 1, kMaxPort)) return static_cast<int>(port->value);
  if (ranks.launcher == "srun") {
    const auto job = variables.first_text({"SLURM_JOB_ID", "SLURM_JOBID"});
    if (job) return port_of_job(*job + "." + variables.first_text({"SLURM_STEP_ID", "SLURM_STEPID"}).value_or("0"));
  }
  if (const auto job = variables.text("PMIX_NAMESPACE"); job && ranks.launcher == "mpirun") return port_of_job(*job);
  return ranks.port;
}

void check_are_together(const std::optional<Number>& rank, const std::optional<Number>& world_size) {
  if (!rank && world_size) {
    throw ConfigError(fmt::format("[launch] {} is {}, but no variable has the rank of this process ({})",
                                  world_size->name, world_size->value, fmt::join(kRankNames, ", ")));
  }
  if (rank && !world_size) {
    throw ConfigError(fmt::format("[launch] {} is {}, but no variable has the number of ranks ({})", rank->name,
                                  rank->value, fmt::join(kWorldSizeNames, ", ")));
  }
  if (rank && rank->value >= world_size->value) {
    throw ConfigError(fmt::format("[launch] {} is {}, but must be below {}, which is {}", rank->name, rank->value,
                                  world_size->name, world_size->value));
  }
}

}  // namespace

RankEnvironment read_rank_environment(const EnvironmentReader& variable) {
  const Variables variables(variable);
  const auto rank = variables.first_number(kRankNames, 0, kMaxRanks - 1);
  const auto world_size = variables.first_number(kWorldSizeNames, 1, kMaxRanks);
  if (rank || !world_size || world_size->value > 1) check_are_together(rank, world_size);
  if (!world_size || world_size->value == 1) return {};
  RankEnvironment ranks;
  ranks.launcher = launcher_of(variables, rank->name);
  ranks.rank = rank->value;
  ranks.world_size = world_size->value;
  read_local_ranks(variables, ranks);
  ranks.master_address = master_address(variables, ranks);
  ranks.port = master_port(variables, ranks);
  if (ranks.launcher == "clip_train") {
    ranks.store_is_hosted = true;
  } else if (ranks.launcher == "torchrun") {
    ranks.store_is_hosted = variables.is("TORCHELASTIC_USE_AGENT_STORE", "True");
    const auto restarts = variables.number("TORCHELASTIC_RESTART_COUNT", 0, std::numeric_limits<int64_t>::max());
    ranks.attempt = restarts ? restarts->value : 0;
  }
  return ranks;
}

RankEnvironment read_rank_environment() {
  return read_rank_environment([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
  });
}

}  // namespace contrastive::distributed
