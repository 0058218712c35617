#include "contrastive/distributed/rank_environment.h"

#include <map>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/errors.h"

namespace contrastive::distributed {
namespace {

using Environment = std::map<std::string, std::string>;
using Hosts = std::vector<std::string>;

RankEnvironment read(const Environment& environment) {
  return read_rank_environment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = environment.find(name);
    return found != environment.end() ? std::optional(found->second) : std::nullopt;
  });
}

Environment with(Environment environment, const Environment& changes) {
  for (const auto& [name, value] : changes) environment[name] = value;
  return environment;
}

std::string error_of(const Environment& environment) {
  return test::message_of<ConfigError>([&] { read(environment); });
}

void expect_alone(const Environment& environment) {
  const auto ranks = read(environment);
  EXPECT_EQ(ranks.launcher, "none");
  EXPECT_EQ(ranks.rank, 0);
  EXPECT_EQ(ranks.world_size, 1);
  EXPECT_EQ(ranks.local_rank, 0);
  EXPECT_EQ(ranks.local_world_size, 1);
  EXPECT_FALSE(ranks.store_is_hosted);
}

void expect_ranks(const RankEnvironment& ranks, int64_t rank, int64_t world_size, int64_t local_rank,
                  int64_t local_world_size) {
  EXPECT_EQ(ranks.rank, rank);
  EXPECT_EQ(ranks.world_size, world_size);
  EXPECT_EQ(ranks.local_rank, local_rank);
  EXPECT_EQ(ranks.local_world_size, local_world_size);
}

// The environments below were printed by the launchers themselves: torchrun of torch 2.11, Slurm 22.05, Open MPI 4.1.

const Environment kTorchrun{{"RANK", "3"},
                            {"LOCAL_RANK", "1"},
                            {"WORLD_SIZE", "4"},
                            {"LOCAL_WORLD_SIZE", "2"},
                            {"GROUP_RANK", "1"},
                            {"MASTER_ADDR", "node0"},
                            {"MASTER_PORT", "41234"},
                            {"OMP_NUM_THREADS", "1"},
                            {"TORCHELASTIC_RUN_ID", "none"},
                            {"TORCHELASTIC_MAX_RESTARTS", "3"},
                            {"TORCHELASTIC_RESTART_COUNT", "2"},
                            {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

const Environment kSbatch{{"ENVIRONMENT", "BATCH"},       {"SLURM_JOB_ID", "4711"}, {"SLURM_JOB_NODELIST", "n[1-2]"},
                          {"SLURM_NODELIST", "n[1-2]"},   {"SLURM_NODEID", "0"},    {"SLURM_PROCID", "0"},
                          {"SLURM_LOCALID", "0"},         {"SLURM_NTASKS", "3"},    {"SLURM_NPROCS", "3"},
                          {"SLURM_TASKS_PER_NODE", "2,1"}};

const Environment kSrun = with(kSbatch, {{"SLURM_STEP_ID", "0"},
                                         {"SLURM_STEPID", "0"},
                                         {"SLURM_STEP_NUM_TASKS", "3"},
                                         {"SLURM_STEP_NODELIST", "n[1-2]"},
                                         {"SLURM_STEP_TASKS_PER_NODE", "2,1"},
                                         {"SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"}});

const Environment kMpirun{{"OMPI_COMM_WORLD_RANK", "1"},
                          {"OMPI_COMM_WORLD_SIZE", "2"},
                          {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                          {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                          {"PMIX_NAMESPACE", "160366593"}};

TEST(RankEnvironmentTest, IsAloneWithoutALauncherOrAsItsOnlyRank) {
  expect_alone({});
  expect_alone({{"RANK", ""}, {"WORLD_SIZE", ""}});
  expect_alone({{"WORLD_SIZE", "1"}});
  expect_alone({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "3"}});
  expect_alone({{"LOCAL_RANK", "3"}, {"MASTER_ADDR", "node0"}});
  expect_alone(with(kTorchrun, {{"RANK", "0"}, {"WORLD_SIZE", "1"}}));
}

TEST(RankEnvironmentTest, ReadsTorchrunWhoseAgentHostsTheStore) {
  const auto ranks = read(kTorchrun);
  EXPECT_EQ(ranks.launcher, "torchrun");
  expect_ranks(ranks, 3, 4, 1, 2);
  EXPECT_EQ(ranks.master_address, "node0");
  EXPECT_EQ(ranks.port, 41234);
  EXPECT_TRUE(ranks.store_is_hosted);
  EXPECT_EQ(ranks.attempt, 2);
  EXPECT_FALSE(read(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).store_is_hosted);
}

TEST(RankEnvironmentTest, ReadsRanksThatClipTrainStartedEvenInsideOfAnotherLauncher) {
  const Environment own{{"CONTRASTIVE_STORE_IS_HOSTED", "1"},
                        {"RANK", "1"},
                        {"WORLD_SIZE", "3"},
                        {"LOCAL_RANK", "1"},
                        {"LOCAL_WORLD_SIZE", "3"},
                        {"MASTER_ADDR", "127.0.0.1"},
                        {"MASTER_PORT", "40000"}};
  for (const auto& outer : {Environment{}, kTorchrun, kSbatch, kSrun, kMpirun}) {
    const auto ranks = read(with(outer, own));
    EXPECT_EQ(ranks.launcher, "clip_train");
    expect_ranks(ranks, 1, 3, 1, 3);
    EXPECT_EQ(ranks.master_address, "127.0.0.1");
    EXPECT_EQ(ranks.port, 40000);
    EXPECT_TRUE(ranks.store_is_hosted);
    EXPECT_EQ(ranks.attempt, 0);
  }
}

TEST(RankEnvironmentTest, ReadsTasksOfSrun) {
  const auto first = read(kSrun);
  EXPECT_EQ(first.launcher, "srun");
  expect_ranks(first, 0, 3, 0, 2);
  EXPECT_EQ(first.master_address, "n1");
  EXPECT_FALSE(first.store_is_hosted);
  const auto last = read(with(kSrun, {{"SLURM_PROCID", "2"}, {"SLURM_NODEID", "1"}}));
  expect_ranks(last, 2, 3, 0, 1);
  EXPECT_EQ(last.master_address, "n1");
  EXPECT_EQ(last.port, first.port);
  EXPECT_EQ(read(with(kSrun, {{"SLURM_STEP_NODELIST", "n2"}})).master_address, "n2");
  const auto set = read(with(kSrun, {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "12802"}}));
  EXPECT_EQ(set.master_address, "10.0.0.1");
  EXPECT_EQ(set.port, 12802);
  const auto pmi2 =
      read(with(kSrun, {{"PMI_RANK", "1"}, {"PMI_SIZE", "3"}, {"SLURM_PROCID", "1"}, {"SLURM_LOCALID", "1"}}));
  EXPECT_EQ(pmi2.launcher, "srun");
  expect_ranks(pmi2, 1, 3, 1, 2);
  const auto one_node = with(kSrun, {{"SLURM_STEP_TASKS_PER_NODE", "3"}, {"SLURM_TASKS_PER_NODE", "3"}});
  EXPECT_EQ(read(one_node).master_address, "127.0.0.1");
}

TEST(RankEnvironmentTest, ReadsSrunTasksWithoutAStepNumber) {
  const Environment few{
      {"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODELIST", "a[8-9]"}};
  const auto ranks = read(few);
  expect_ranks(ranks, 1, 2, 0, 1);
  EXPECT_EQ(ranks.master_address, "a8");
  EXPECT_EQ(ranks.port, 29500);
  EXPECT_EQ(read(with(few, {{"SLURM_NTASKS_PER_NODE", "2"}})).local_world_size, 2);
}

TEST(RankEnvironmentTest, PortsOfJobsAndStepsDifferAndLieBelowTheEphemeralOnes) {
  const auto port = [](const Environment& job) { return read(with(kSrun, job)).port; };
  EXPECT_NE(port({{"SLURM_JOB_ID", "4712"}}), port({}));
  EXPECT_NE(port({{"SLURM_STEP_ID", "1"}}), port({}));
  for (int job = 0; job < 1000; ++job) {
    const auto found = port({{"SLURM_JOB_ID", std::to_string(job)}});
    EXPECT_GE(found, 12'000);
    EXPECT_LT(found, 32'000);
  }
}

TEST(RankEnvironmentTest, ShellsOfSlurmAreAlone) {
  expect_alone(kSbatch);
  auto salloc = kSbatch;
  for (const auto* name : {"ENVIRONMENT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"}) salloc.erase(name);
  expect_alone(salloc);
  expect_alone(with(kSrun, {{"SLURM_PTY_PORT", "36015"}}));                                     // srun --pty bash
  expect_alone(with(kSrun, {{"SLURM_STEP_ID", "4294967290"}, {"SLURM_STEP_NUM_TASKS", "1"}}));  // salloc's own step
  expect_alone(with(kSrun, {{"SLURM_STEP_NUM_TASKS", "1"}}));  // sbatch was called by a task of another srun
}

TEST(RankEnvironmentTest, ABatchScriptThatNamesItsRanksIsBelieved) {
  const auto ranks = read(with(kSbatch, {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "n1"}}));
  EXPECT_EQ(ranks.launcher, "environment");
  expect_ranks(ranks, 1, 2, 0, 1);
  // Scripts often set the size and the address, and srun the rank.
  const auto mixed =
      read(with(kSrun, {{"WORLD_SIZE", "3"}, {"MASTER_ADDR", "n1-ib"}, {"SLURM_PROCID", "1"}, {"SLURM_LOCALID", "1"}}));
  EXPECT_EQ(mixed.launcher, "srun");
  expect_ranks(mixed, 1, 3, 1, 2);
  EXPECT_EQ(mixed.master_address, "n1-ib");
}

TEST(RankEnvironmentTest, ReadsMpirunAndInsideOfSlurmToo) {
  const auto ranks = read(kMpirun);
  EXPECT_EQ(ranks.launcher, "mpirun");
  expect_ranks(ranks, 1, 2, 1, 2);
  EXPECT_EQ(ranks.master_address, "127.0.0.1");
  EXPECT_NE(ranks.port, read(with(kMpirun, {{"PMIX_NAMESPACE", "154075137"}})).port);
  // mpirun's processes are started by one task of SLURM per node, whose variables they inherit.
  const auto in_slurm = read(with(with(kSrun, {{"SLURM_NTASKS", "1"}, {"SLURM_STEP_NUM_TASKS", "1"}}), kMpirun));
  EXPECT_EQ(in_slurm.launcher, "mpirun");
  expect_ranks(in_slurm, 1, 2, 1, 2);
  const auto hydra = read(
      {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "4"}, {"MASTER_ADDR", "a"}});
  EXPECT_EQ(hydra.launcher, "mpirun");
  expect_ranks(hydra, 5, 8, 1, 4);
}

TEST(RankEnvironmentTest, SeveralHostsNeedAnAddress) {
  EXPECT_EQ(
      error_of(with(kMpirun, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}})),
      "[launch] rank 1 of 2: MASTER_ADDR is not set; export the address of the machine of rank 0 (127.0.0.1 if all "
      "ranks are on this one)");
}

TEST(RankEnvironmentTest, FillsInTheLocalRanksOfRanksStartedByHand) {
  const Environment here{{"RANK", "2"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "127.0.0.1"}};
  EXPECT_EQ(read(here).launcher, "environment");
  expect_ranks(read(here), 2, 3, 2, 3);
  expect_ranks(read(with(here, {{"MASTER_ADDR", "localhost"}})), 2, 3, 2, 3);
  expect_ranks(read(with(here, {{"MASTER_ADDR", "10.0.0.1"}})), 2, 3, 0, 1);
  expect_ranks(read(with(here, {{"MASTER_ADDR", "10.0.0.1"}, {"LOCAL_RANK", "1"}})), 2, 3, 1, 2);
  EXPECT_EQ(read(here).port, 29500);
}

TEST(RankEnvironmentTest, SaysWhichVariableIsWrong) {
  const Environment good{{"RANK", "2"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "127.0.0.1"}};
  const auto error = [&](const std::string& name, const std::string& value) {
    return error_of(with(good, {{name, value}}));
  };
  EXPECT_EQ(error("RANK", "two"), "[launch] RANK is \"two\", but must be an integer in [0, 999999]");
  EXPECT_EQ(error("RANK", "-1"), "[launch] RANK is \"-1\", but must be an integer in [0, 999999]");
  EXPECT_EQ(error("RANK", "1.0"), "[launch] RANK is \"1.0\", but must be an integer in [0, 999999]");
  EXPECT_EQ(error("RANK", "1 "), "[launch] RANK is \"1 \", but must be an integer in [0, 999999]");
  EXPECT_EQ(error("RANK", "3"), "[launch] RANK is 3, but must be below WORLD_SIZE, which is 3");
  EXPECT_EQ(error("WORLD_SIZE", "0"), "[launch] WORLD_SIZE is \"0\", but must be an integer in [1, 1000000]");
  EXPECT_EQ(error("WORLD_SIZE", "99999999999999999999"),
            "[launch] WORLD_SIZE is \"99999999999999999999\", but must be an integer in [1, 1000000]");
  EXPECT_EQ(error("RANK", ""),
            "[launch] WORLD_SIZE is 3, but no variable has the rank of this process (RANK, PMI_RANK, SLURM_PROCID, "
            "OMPI_COMM_WORLD_RANK)");
  EXPECT_EQ(error("WORLD_SIZE", ""),
            "[launch] RANK is 2, but no variable has the number of ranks (WORLD_SIZE, PMI_SIZE, SLURM_NTASKS, "
            "OMPI_COMM_WORLD_SIZE)");
  EXPECT_EQ(error("LOCAL_RANK", "3"), "[launch] LOCAL_RANK is \"3\", but must be an integer in [0, 2]");
  EXPECT_EQ(error("LOCAL_WORLD_SIZE", "4"), "[launch] LOCAL_WORLD_SIZE is 4, but there are 3 ranks");
  EXPECT_EQ(error_of(with(good, {{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "1"}})),
            "[launch] LOCAL_RANK is 1, but this machine has 1 ranks");
  EXPECT_EQ(error("MASTER_PORT", "70000"), "[launch] MASTER_PORT is \"70000\", but must be an integer in [1, 65535]");
  EXPECT_EQ(error_of(with(kTorchrun, {{"TORCHELASTIC_RESTART_COUNT", "x"}})),
            "[launch] TORCHELASTIC_RESTART_COUNT is \"x\", but must be an integer in [0, 9223372036854775807]");
}

TEST(RankEnvironmentTest, ReadsHowManyTasksSlurmPutsOnEachNode) {
  const auto tasks = [](const std::string& list, const std::string& node) {
    return read(with(kSrun, {{"SLURM_NTASKS", "11"},
                             {"SLURM_STEP_NUM_TASKS", "11"},
                             {"SLURM_NODEID", node},
                             {"SLURM_STEP_TASKS_PER_NODE", list}}))
        .local_world_size;
  };
  EXPECT_EQ(tasks("4(x2),3", "0"), 4);
  EXPECT_EQ(tasks("4(x2),3", "1"), 4);
  EXPECT_EQ(tasks("4(x2),3", "2"), 3);
  EXPECT_EQ(tasks("1,2(x5)", "5"), 2);
  for (const auto* list :
       {"x", "4(x", "4(x2", "4(x0)", "0", "4,", "4;3", "4(x2)3", "-1", "99999999999999999999", "4(x2),,3"}) {
    EXPECT_EQ(test::message_of<ConfigError>([&] { tasks(list, "9"); }),
              "[launch] SLURM_STEP_TASKS_PER_NODE is \"" + std::string(list) + "\", but must look like \"4(x2),3\"");
  }
}

// Expected values: what `scontrol show hostnames` of Slurm 22.05 prints; it refuses only the name that goes on after
// its last bracket.
TEST(NodeListTest, ExpandsRangesAndKeepsZeros) {
  EXPECT_EQ(expand_node_list("login"), Hosts({"login"}));
  EXPECT_EQ(expand_node_list("a[01-03,7]"), Hosts({"a01", "a02", "a03", "a7"}));
  EXPECT_EQ(expand_node_list("a[01-03,7],b,c[1-2]-ib"), Hosts({"a01", "a02", "a03", "a7", "b", "c1-ib", "c2-ib"}));
  EXPECT_EQ(expand_node_list("r[1-2]n[3-4]"), Hosts({"r1n3", "r1n4", "r2n3", "r2n4"}));
  EXPECT_EQ(expand_node_list("d[08-10]"), Hosts({"d08", "d09", "d10"}));
  EXPECT_EQ(expand_node_list("e[1-003]"), Hosts({"e1", "e2", "e3"}));
  EXPECT_EQ(expand_node_list("x,y,x"), Hosts({"x", "y", "x"}));
  const auto many = expand_node_list("n[09-101]");
  ASSERT_EQ(many.size(), 93);
  EXPECT_EQ(many[0], "n09");
  EXPECT_EQ(many[92], "n101");
  EXPECT_EQ(expand_node_list("n[1-100000]").size(), 100'000);
}

TEST(NodeListTest, SaysWhatIsWrongWithAList) {
  const auto error = [](const std::string& list) {
    return test::message_of<ConfigError>([&] { expand_node_list(list); });
  };
  const auto reason = [](const std::string& list, const std::string& text) {
    return "SLURM node list \"" + list + "\": " + text;
  };
  EXPECT_EQ(error(""), reason("", "a name is empty"));
  EXPECT_EQ(error("a,,b"), reason("a,,b", "a name is empty"));
  EXPECT_EQ(error("a,"), reason("a,", "a name is empty"));
  EXPECT_EQ(error("a[1"), reason("a[1", "a [ is not closed"));
  EXPECT_EQ(error("a[1-2[3]]"), reason("a[1-2[3]]", "a [ is not closed"));
  EXPECT_EQ(error("a1]"), reason("a1]", "a ] has no [ before it"));
  EXPECT_EQ(error("f[3-1]"), reason("f[3-1]", "the range \"3-1\" ends before it begins"));
  for (const auto* range : {"", "x", "1-", "-1", "1-2-3", "1 ", "+1", "1234567890"}) {
    EXPECT_EQ(error("a[" + std::string(range) + "]"),
              reason("a[" + std::string(range) + "]",
                     "\"" + std::string(range) +
                         "\" in brackets is neither a number nor a range of numbers with at most 9 digits"));
  }
}

TEST(NodeListTest, RefusesListsThatAreAbsurdlyLarge) {
  const auto error = [](const std::string& list) {
    return test::message_of<ConfigError>([&] { expand_node_list(list); });
  };
  EXPECT_EQ(error("n[1-100001]"),
            "SLURM node list \"n[1-100001]\": it has 100001 hosts or more, at most 100000 are allowed");
  EXPECT_EQ(error("n[0-999999999]"),
            "SLURM node list \"n[0-999999999]\": it has 1000000000 hosts or more, at most 100000 are allowed");
  EXPECT_EQ(error("n[1-1000][1-1000]"),
            "SLURM node list \"n[1-1000][1-1000]\": it has 1000000 hosts or more, at most 100000 are allowed");
  EXPECT_EQ(error("n[1-60000],m[1-60000]"),
            "SLURM node list \"n[1-60000],m[1-60000]\": it has 120000 hosts or more, at most 100000 are allowed");
  EXPECT_NE(error(std::string(300, 'a')).find("a name has more than 253 bytes"), std::string::npos);
  EXPECT_NE(error("n[1-100000]" + std::string(900'000, 'a')).find("a name has more than 253 bytes"), std::string::npos);
  std::string brackets = "n";
  for (int i = 0; i < 300; ++i) brackets += "[1]";
  EXPECT_NE(error(brackets).find("a name has more than 253 bytes"), std::string::npos);
  EXPECT_NE(error(std::string(1'000'001, ',')).find("it has 1000001 bytes, at most 1000000 are allowed"),
            std::string::npos);
}

}  // namespace
}  // namespace contrastive::distributed
