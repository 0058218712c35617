#include "train/event_file.h"

#include <array>
#include <bit>
#include <chrono>
#include <cstring>

#include <fmt/format.h>
#include <unistd.h>

namespace contrastive::train::detail {
namespace {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

double now_seconds() {
  using namespace std::chrono;
  return duration<double>(system_clock::now().time_since_epoch()).count();
}

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78U : 0U);
    table[i] = value;
  }
  return table;
}();

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

/// Protocol-buffer wire types.
enum class Wire { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_key(std::string& out, int field, Wire wire) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire));
}

template <typename Number>
void put_fixed(std::string& out, int field, Wire wire, Number value) {
  put_key(out, field, wire);
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void put_bytes(std::string& out, int field, std::string_view value) {
  put_key(out, field, Wire::bytes);
  put_varint(out, value.size());
  out += value;
}

/// Event: wall_time = 1, step = 2; the caller adds what happened.
std::string event(int64_t step) {
  std::string out;
  put_fixed(out, 1, Wire::fixed64, now_seconds());
  put_key(out, 2, Wire::varint);
  put_varint(out, static_cast<uint64_t>(step));
  return out;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xFF];
  return ~crc;
}

EventFile::EventFile(const std::filesystem::path& directory, int64_t purge_from_step) {
  std::filesystem::create_directories(directory);
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  const auto name =
      fmt::format("events.out.tfevents.{}.{}.{}", static_cast<int64_t>(now_seconds()), host.data(), getpid());
  stream_.open(directory / name, std::ios::binary | std::ios::app);
  auto first = event(0);
  put_bytes(first, 3, "brain.Event:2");
  write_record(first);
  if (purge_from_step > 0) {  // SessionLog = 7 { status = 1: START = 1 }
    auto start = event(purge_from_step);
    put_bytes(start, 7, std::string_view("\x08\x01", 2));
    write_record(start);
  }
}

bool EventFile::write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    put_bytes(entry, 1, tag);
    put_fixed(entry, 2, Wire::fixed32, static_cast<float>(value));
    put_bytes(summary, 1, entry);
  }
  auto payload = event(step);
  put_bytes(payload, 5, summary);
  return write_record(payload);
}

bool EventFile::write_record(const std::string& payload) {
  const uint64_t length = payload.size();
  const std::string_view length_bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  const uint32_t length_crc = masked_crc(length_bytes);
  const uint32_t payload_crc = masked_crc(payload);
  stream_.clear();
  stream_.write(length_bytes.data(), sizeof(length));
  stream_.write(reinterpret_cast<const char*>(&length_crc), sizeof(length_crc));
  stream_.write(payload.data(), static_cast<std::streamsize>(payload.size()));
  stream_.write(reinterpret_cast<const char*>(&payload_crc), sizeof(payload_crc));
  stream_.flush();
  return stream_.good();
}

}  // namespace contrastive::train::detail
