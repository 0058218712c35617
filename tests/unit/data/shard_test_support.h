#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "contrastive/core/error.h"
#include "contrastive/data/tar.h"
#include "contrastive/image/image.h"

namespace contrastive::test {

/// Names and contents of the members of an archive, in order.
using Members = std::vector<std::pair<std::string, std::string>>;

inline void write_file(const std::filesystem::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline void write_tar(const std::filesystem::path& path, const Members& members) {
  data::TarWriter writer(path);
  for (const auto& [name, content] : members) writer.add(name, content);
  writer.close();
}

/// The members of an archive with their content.
inline Members read_tar(const std::filesystem::path& path) {
  const auto bytes = read_file(path);
  Members members;
  data::TarReader reader(path);
  for (data::TarMember member; reader.next(member);) {
    members.emplace_back(member.name,
                         bytes.substr(static_cast<size_t>(member.offset), static_cast<size_t>(member.size)));
  }
  return members;
}

/// The output of a shell command.
inline std::string output_of(const std::string& command) {
  std::string output;
  FILE* pipe = ::popen(command.c_str(), "r");
  char buffer[4096];
  for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.append(buffer, count);
  ::pclose(pipe);
  return output;
}

/// A PNG file with a single-coloured picture.
inline std::string png(uint8_t value) {
  image::Image picture;
  picture.width = 8;
  picture.height = 6;
  picture.pixels.assign(8 * 6 * 3, value);
  const auto bytes = image::encode_png(picture);
  return {bytes.begin(), bytes.end()};
}

/// The message of the E that `action` throws.
template <typename E, typename Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another exception: " << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

/// Expects `message` to hold `part`.
inline void expect_mentions(const std::string& message, const std::string& part) {
  EXPECT_NE(message.find(part), std::string::npos) << "\"" << message << "\" does not mention \"" << part << "\"";
}

/// Sets an environment variable, or unsets it, while the object lives.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const std::optional<std::string>& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~ScopedEnvironment() { set(before_); }
  ScopedEnvironment(const ScopedEnvironment&) = delete;
  ScopedEnvironment& operator=(const ScopedEnvironment&) = delete;

 private:
  void set(const std::optional<std::string>& value) const {
    if (value) {
      ::setenv(name_, value->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }

  const char* name_;
  std::optional<std::string> before_;
};

}  // namespace contrastive::test
