#include "config.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>

using json = nlohmann::ordered_json;

static std::vector<std::string> virt_split(const std::string & text, char separator) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, separator); ) {
        parts.push_back(part);
    }
    if (text.empty() || text.back() == separator) {
        parts.emplace_back();
    }
    return parts;
}

static std::invalid_argument virt_wrong(const std::string & key, const std::string & value, const std::string & expected) {
    return std::invalid_argument("virtual devices: " + key + " is '" + value + "', expected " + expected);
}

static double virt_number(const std::string & key, const std::string & value, double min, double max) {
    size_t n   = 0;
    double res = NAN;
    try {
        res = std::stod(value, &n);
    } catch (const std::exception &) {
    }
    if (n != value.size() || !(res >= min && res <= max)) {
        std::ostringstream expected;
        expected << "a number from " << min << " to " << max;
        throw virt_wrong(key, value, expected.str());
    }
    return res;
}

static int64_t virt_integer(const std::string & key, const std::string & value, int64_t min, int64_t max) {
    const double res = virt_number(key, value, min, max);
    if (res != std::floor(res)) {
        throw virt_wrong(key, value, "a whole number");
    }
    return (int64_t) res;
}

//
// keys
//

using virt_setter = std::function<void(virt_config &, const std::string & key, const std::string & value)>;

static virt_setter virt_real(double virt_config::*member, double min, double max) {
    return [=](virt_config & config, const std::string & key, const std::string & value) {
        config.*member = virt_number(key, value, min, max);
    };
}

static virt_setter virt_count(int64_t virt_config::*member) {
    return [=](virt_config & config, const std::string & key, const std::string & value) {
        config.*member = virt_integer(key, value, 0, 1000000000);
    };
}

static void virt_set_peer(virt_config & config, const std::string & key, const std::string & value) {
    static const std::map<std::string, virt_peer> peers = {
        { "async", VIRT_PEER_ASYNC }, { "blocking", VIRT_PEER_BLOCKING }, { "refused", VIRT_PEER_REFUSED },
    };
    const auto it = peers.find(value);
    if (it == peers.end()) {
        throw virt_wrong(key, value, "async, blocking or refused");
    }
    config.peer = it->second;
}

static virt_setter virt_switch(bool virt_config::*member) {
    return [=](virt_config & config, const std::string & key, const std::string & value) {
        if (value != "on" && value != "off") {
            throw virt_wrong(key, value, "on or off");
        }
        config.*member = value == "on";
    };
}

static void virt_set_fail_as(virt_config & config, const std::string & key, const std::string & value) {
    static const std::map<std::string, ggml_status> statuses = {
        { "failed", GGML_STATUS_FAILED }, { "memory", GGML_STATUS_ALLOC_FAILED }, { "aborted", GGML_STATUS_ABORTED },
    };
    const auto it = statuses.find(value);
    if (it == statuses.end()) {
        throw virt_wrong(key, value, "failed, memory or aborted");
    }
    config.fail_as = it->second;
}

static const std::map<std::string, virt_setter> & virt_keys() {
    static const std::map<std::string, virt_setter> keys = {
        { "peer",          virt_set_peer },
        { "events",        virt_switch(&virt_config::events) },
        { "fusion",        virt_switch(&virt_config::fusion) },
        { "split_us",      virt_real(&virt_config::split_us,      0,    1e9) },
        { "us_per_token",  virt_real(&virt_config::us_per_token,  0,    1e9) },
        { "slow",          virt_real(&virt_config::slow,          1e-3, 1e6) },
        { "launch_us",     virt_real(&virt_config::launch_us,     0,    1e9) },
        { "bandwidth_gbs", virt_real(&virt_config::bandwidth_gbs, 0,    1e6) },
        { "latency_us",    virt_real(&virt_config::latency_us,    0,    1e9) },
        { "memory_gb",     virt_real(&virt_config::memory_gb,     1e-6, 1e6) },
        { "fail_graph",    virt_count(&virt_config::fail_graph) },
        { "fail_as",       virt_set_fail_as },
        { "fail_copy",     virt_count(&virt_config::fail_copy) },
        { "fail_download", virt_count(&virt_config::fail_download) },
        { "fail_buffer",   virt_count(&virt_config::fail_buffer) },
        { "lost_event",    virt_count(&virt_config::lost_event) },
        { "throw_graph",   virt_count(&virt_config::throw_graph) },
        { "refuse_event",  virt_count(&virt_config::refuse_event) },
        { "refuse_stream", virt_count(&virt_config::refuse_stream) },
        { "refuse_host",   virt_count(&virt_config::refuse_host) },
        { "refuse_tensor", virt_count(&virt_config::refuse_tensor) },
        { "refuse_copies", virt_count(&virt_config::refuse_copies) },
        { "stall_graph",   virt_count(&virt_config::stall_graph) },
        { "stall_ms",      virt_real(&virt_config::stall_ms,      0,    1e6) },
    };
    return keys;
}

static const virt_setter & virt_key(const std::string & key) {
    const auto it = virt_keys().find(key);
    if (it == virt_keys().end()) {
        std::string known;
        for (const auto & entry : virt_keys()) {
            known += (known.empty() ? "" : ", ") + entry.first;
        }
        throw std::invalid_argument("virtual devices: there is no key '" + key + "', expected one of " + known);
    }
    return it->second;
}

// one value for all devices, or one for each, separated by slashes
static void virt_set(std::vector<virt_config> & devices, const std::string & key, const std::string & value) {
    const virt_setter & set    = virt_key(key);
    const auto          values = virt_split(value, '/');
    if (values.size() != 1 && values.size() != devices.size()) {
        throw virt_wrong(key, value, "one value, or one for each of the " + std::to_string(devices.size()) + " devices");
    }
    for (size_t i = 0; i < devices.size(); i++) {
        set(devices[i], key, values[values.size() == 1 ? 0 : i]);
    }
}

//
// sources
//

static std::vector<virt_config> virt_parse_text(const std::string & spec) {
    const auto parts = virt_split(spec, ',');

    std::vector<virt_config> devices(virt_integer("the number of devices", parts[0], 1, VIRT_MAX_DEVICES));
    for (size_t i = 1; i < parts.size(); i++) {
        const size_t equals = parts[i].find('=');
        if (equals == std::string::npos) {
            throw std::invalid_argument("virtual devices: '" + parts[i] + "' is not of the form key=value");
        }
        virt_set(devices, parts[i].substr(0, equals), parts[i].substr(equals + 1));
    }
    return devices;
}

static std::string virt_text(const json & value) {
    if (value.is_array()) {
        std::string text;
        for (const auto & part : value) {
            text += (text.empty() ? "" : "/") + virt_text(part);
        }
        return text;
    }
    if (value.is_boolean()) {
        return value.get<bool>() ? "on" : "off";
    }
    return value.is_string() ? value.get<std::string>() : value.dump();
}

// {"devices": 4, "peer": "async", "slow": [1, 1, 2, 1]}; devices may also be a list of objects, one per device
static std::vector<virt_config> virt_parse_file(const std::string & path) {
    std::ifstream file(path);
    if (!file) {
        throw std::invalid_argument("virtual devices: cannot read " + path);
    }
    const json root = json::parse(file, nullptr, /*allow_exceptions =*/ false);
    if (!root.is_object() || !root.contains("devices")) {
        throw std::invalid_argument("virtual devices: " + path + " is not a JSON object with a key 'devices'");
    }
    const json & list = root["devices"];

    const std::string n_devices = list.is_array() ? std::to_string(list.size()) : virt_text(list);
    std::vector<virt_config> devices(virt_integer("the number of devices", n_devices, 1, VIRT_MAX_DEVICES));
    for (const auto & item : root.items()) {
        if (item.key() != "devices") {
            virt_set(devices, item.key(), virt_text(item.value()));
        }
    }
    for (size_t i = 0; list.is_array() && i < list.size(); i++) {
        if (!list[i].is_object()) {
            throw std::invalid_argument("virtual devices: device " + std::to_string(i) + " in " + path + " is not a JSON object");
        }
        for (const auto & item : list[i].items()) {
            virt_key(item.key())(devices[i], item.key(), virt_text(item.value()));
        }
    }
    return devices;
}

std::vector<virt_config> virt_parse_config(const std::string & spec) {
    return spec.rfind('@', 0) == 0 ? virt_parse_file(spec.substr(1)) : virt_parse_text(spec);
}
