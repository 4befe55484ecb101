package tidings_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	modulePath     = "github.com/tidings-go/tidings"
	standardPrefix = "standard:"
)

// A layer is a group of packages with what they may import. Packages are written relative to the module, the root as ".".
// A pattern is a path, "path/..." for it and all below it, "standard" for the standard library, "ours" for any package of the
// module, "third-party" for any other, and "own/..." for the two-part folder that the importing package lies in, such as driver/sqs.
// A package belongs to the first layer with a pattern that matches.
type layer struct {
	packages []string
	imports  []string // what files other than tests may import
	tests    []string // what tests may import beyond that; nil: anything
	reason   string
}

var (
	// core is what is to be one module before v1: every team's events package imports it, so it needs google/uuid only.
	core = []string{".", "driver", "codec", "driver/memory", "outbox", "inbox", "deadletter", "tidingstest",
		"store/memory", "store/storetest", "driver/drivertest", "internal/..."}

	// coreTests is what the tests of core may use: whoever works on it downloads no client of a broker.
	coreTests = slices.Concat(core, []string{"github.com/google/uuid", "github.com/google/go-cmp/...", "pgregory.net/rapid"})

	// faces is the root and what stands below the stores.
	faces = []string{".", "driver", "codec", "outbox", "inbox", "deadletter", "internal/..."}
)

var layers = []layer{
	{[]string{"driver"}, []string{"standard"}, coreTests,
		"whoever writes a driver reads this package and nothing else"},
	{[]string{"driver/drivertest", "driver/drivertest/..."}, slices.Concat([]string{"standard", "driver/memory", "own/..."}, faces), coreTests,
		"the suite is imported by drivers outside this repository, so it brings no dependency; it may drive the root's engine"},
	{[]string{"driver/sqldb", "driver/sqldb/..."}, slices.Concat([]string{"standard", "store/...", "own/...", "github.com/google/uuid"}, faces), nil,
		"the one driver that reaches the root: its log is the outbox of a store"},
	{[]string{"driver/memory"}, []string{"standard", "driver", "internal/..."}, coreTests,
		"a driver speaks to the engine through driver only; this one belongs to the core and has no client"},
	{[]string{"driver/kafka", "driver/kafka/..."}, []string{"standard", "driver", "internal/...", "own/...", "github.com/twmb/franz-go/..."}, nil,
		"a driver speaks to the engine through driver only, and knows its own client and no other broker"},
	{[]string{"driver/sqs", "driver/sqs/..."}, []string{"standard", "driver", "internal/...", "own/...", "github.com/aws/aws-sdk-go-v2/...", "github.com/aws/smithy-go/..."}, nil,
		"a driver speaks to the engine through driver only, and knows its own client and no other broker"},
	{[]string{"driver/redis", "driver/redis/..."}, []string{"standard", "driver", "internal/...", "own/...", "github.com/redis/rueidis/..."}, nil,
		"a driver speaks to the engine through driver only, and knows its own client and no other broker"},
	{[]string{"driver/..."}, []string{"standard", "driver", "internal/...", "own/..."}, nil,
		"a driver speaks to the engine through driver only; a new one gets a layer of its own, which names its client"},

	{[]string{"codec"}, []string{"standard", "driver", "internal/...", "github.com/google/uuid"}, coreTests,
		"the wire formats lie between the engine and the drivers and know neither's insides"},
	{[]string{"."}, []string{"standard", "driver", "codec", "internal/...", "github.com/google/uuid"}, coreTests,
		"every events package of every team imports the root, so it costs the standard library and google/uuid and knows no broker and no store"},
	{[]string{"outbox", "inbox", "deadletter"}, []string{"standard", ".", "driver", "codec", "internal/...", "github.com/google/uuid"}, coreTests,
		"each pattern is used alone, above the root and below the stores"},

	{[]string{"store/storetest"}, slices.Concat([]string{"standard"}, faces), coreTests,
		"the suite is imported by stores outside this repository, so it brings no dependency"},
	{[]string{"store/memory"}, slices.Concat([]string{"standard", "github.com/google/uuid"}, faces), coreTests,
		"the store of tests and of one process belongs to the core"},
	{[]string{"store/postgres", "store/postgres/..."}, slices.Concat([]string{"standard", "store/internal/...", "own/...", "github.com/jackc/pgx/...", "github.com/google/uuid"}, faces), nil,
		"a store is one technology: the faces it serves, its client, and never another store, a driver of a broker or the wiring above"},
	{[]string{"store/mysql", "store/mysql/..."}, slices.Concat([]string{"standard", "store/internal/...", "own/...", "github.com/go-sql-driver/mysql", "github.com/google/uuid"}, faces), nil,
		"a store is one technology: the faces it serves, its client, and never another store, a driver of a broker or the wiring above"},
	{[]string{"store/sqlite", "store/sqlite/..."}, slices.Concat([]string{"standard", "store/internal/...", "own/...", "modernc.org/sqlite/...", "github.com/google/uuid"}, faces), nil,
		"a store is one technology: the faces it serves, its client, and never another store, a driver of a broker or the wiring above"},
	{[]string{"store/redis", "store/redis/..."}, slices.Concat([]string{"standard", "store/internal/...", "own/...", "github.com/redis/rueidis/...", "github.com/google/uuid"}, faces), nil,
		"a store is one technology: the faces it serves, its client, and never another store, a driver of a broker or the wiring above"},
	{[]string{"store", "store/..."}, slices.Concat([]string{"standard", "store/internal/...", "github.com/google/uuid"}, faces), nil,
		"what stores share knows no client; a new store gets a layer of its own, which names its client"},

	{[]string{"tidingstest"}, slices.Concat([]string{"standard", "driver/memory", "store/memory", "github.com/google/uuid"}, faces), coreTests,
		"the users' test kit is imported by every module's tests, so it brings no dependency"},
	{[]string{"telemetry", "telemetry/..."}, []string{"standard", ".", "driver", "internal/...", "own/...", "telemetry/...", "go.opentelemetry.io/..."}, nil,
		"an Observer on the root's hooks; it sees no broker and no store"},
	{[]string{"contracts", "contracts/..."}, []string{"standard", ".", "codec", "driver", "internal/...", "contracts/...", "golang.org/x/tools/..."}, nil,
		"contracts are read from source; a running broker has no part in it"},
	{[]string{"lint", "lint/..."}, []string{"standard", "contracts/...", "internal/...", "lint/...", "golang.org/x/tools/..."}, nil,
		"analyzers judge the users' source; they run in editors and must stay small"},
	{[]string{"console", "console/..."}, slices.Concat([]string{"standard", "contracts/...", "console/..."}, faces), nil,
		"an http.Handler over what the root and the faces tell; the page is html/template, so nothing else is needed"},
	{[]string{"setup", "setup/..."}, slices.Concat([]string{"standard", "third-party", "driver/...", "store/...", "telemetry/...", "setup/..."}, faces), nil,
		"the one place that knows every driver; what a person looks at or runs lies above it"},
	{[]string{"cmd/..."}, slices.Concat([]string{"standard", "third-party", "driver/...", "store/...", "telemetry/...", "contracts/...", "lint/...", "console/...", "setup/...", "cmd/..."}, faces), nil,
		"the commands stand on everything but examples and test kits"},
	{[]string{"examples/..."}, []string{"standard", "third-party", ".", "driver/...", "codec", "outbox", "inbox", "deadletter", "store/...", "telemetry/...", "contracts/...", "console/...", "setup/...", "tidingstest", "examples/..."}, nil,
		"an example imports what its readers can import: no internal package of ours, no command"},

	{[]string{"interop", "interop/..."}, []string{"standard", "interop/..."}, nil,
		"tests alone: nothing of them is imported"},

	{[]string{"internal/..."}, []string{"standard", "driver", "internal/...", "github.com/google/uuid"}, coreTests,
		"small helpers without opinions, usable from every layer because they know none but driver"},
	{[]string{"scripts/..."}, []string{"standard", "third-party"}, nil,
		"what starts the brokers must build while the library does not"},
	{[]string{"bench/..."}, []string{"standard", "third-party", "ours"}, nil,
		"measures the library from outside; nothing imports it"},
}

// importer is a package as `go list` tells of it.
type importer struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestLayers(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go command is not on the path")
	}
	// -e: a package that does not compile has imports all the same.
	command := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	output, err := command.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var packages []importer
	decoder := json.NewDecoder(strings.NewReader(string(output)))
	for {
		var one importer
		if err := decoder.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, one)
	}
	if len(packages) == 0 {
		t.Fatal("go list names no package")
	}
	for _, violation := range layerViolations(packages) {
		t.Error(violation)
	}
}

// TestLayersReportViolations shows that the table forbids what it is there to forbid, and that it allows the rest.
func TestLayersReportViolations(t *testing.T) {
	tests := []struct {
		name     string
		importer importer
		want     string // the beginning of the one violation; empty: none
	}{
		{"root imports a driver", importer{ImportPath: modulePath, Imports: []string{"context", modulePath + "/driver/kafka"}},
			". imports driver/kafka: every events package"},
		{"root imports a third party", importer{ImportPath: modulePath, Imports: []string{"github.com/twmb/franz-go/pkg/kgo"}},
			". imports github.com/twmb/franz-go/pkg/kgo: every events package"},
		{"root tests reach for a broker", importer{ImportPath: modulePath, XTestImports: []string{modulePath + "/driver/memory", modulePath + "/driver/kafka"}},
			". imports driver/kafka in a test: "},
		{"driver imports the root", importer{ImportPath: modulePath + "/driver/kafka", Imports: []string{modulePath}},
			"driver/kafka imports .: a driver speaks"},
		{"driver imports another driver", importer{ImportPath: modulePath + "/driver/sqs", Imports: []string{modulePath + "/driver/redis"}},
			"driver/sqs imports driver/redis: a driver speaks"},
		{"driver imports another broker's client", importer{ImportPath: modulePath + "/driver/sqs", Imports: []string{"github.com/redis/rueidis"}},
			"driver/sqs imports github.com/redis/rueidis: a driver speaks"},
		{"driver's own parts, client and tests", importer{ImportPath: modulePath + "/driver/sqs",
			Imports:      []string{"net/http", modulePath + "/driver", modulePath + "/driver/sqs/sqstest", "github.com/aws/aws-sdk-go-v2/service/sqs"},
			XTestImports: []string{modulePath, modulePath + "/driver/drivertest"}}, ""},
		{"suite brings a dependency", importer{ImportPath: modulePath + "/driver/drivertest", Imports: []string{modulePath, "github.com/google/go-cmp/cmp"}},
			"driver/drivertest imports github.com/google/go-cmp/cmp: the suite"},
		{"contract package imports up", importer{ImportPath: modulePath + "/codec", Imports: []string{modulePath}},
			"codec imports .: the wire formats"},
		{"store imports another store", importer{ImportPath: modulePath + "/store/postgres", Imports: []string{modulePath + "/outbox", modulePath + "/store/mysql"}},
			"store/postgres imports store/mysql: a store is one technology"},
		{"library imports the wiring", importer{ImportPath: modulePath + "/outbox", Imports: []string{modulePath + "/setup"}},
			"outbox imports setup: each pattern"},
		{"example imports an internal package", importer{ImportPath: modulePath + "/examples/shop", Imports: []string{modulePath + "/internal/clock"}},
			"examples/shop imports internal/clock: an example"},
		{"module imports another's insides", importer{ImportPath: modulePath + "/examples/shop/billing/internal", Imports: []string{modulePath + "/examples/shop/identity/internal/store"}},
			"examples/shop/billing/internal imports examples/shop/identity/internal/store: a module"},
		{"module imports another's face", importer{ImportPath: modulePath + "/examples/shop/billing/internal/app", Imports: []string{modulePath + "/examples/shop/identity"}},
			"examples/shop/billing/internal/app imports examples/shop/identity: a module"},
		{"module imports another's events and its own insides", importer{ImportPath: modulePath + "/examples/shop/billing/internal/app",
			Imports: []string{modulePath, modulePath + "/examples/shop/identity/events", modulePath + "/examples/shop/billing/internal/store"}}, ""},
		{"events import an application", importer{ImportPath: modulePath + "/examples/shop/identity/events", Imports: []string{modulePath, modulePath + "/examples/shop/identity"}},
			"examples/shop/identity/events imports examples/shop/identity: "},
		{"package without a layer", importer{ImportPath: modulePath + "/extras"},
			"extras belongs to no layer"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := layerViolations([]importer{test.importer})
			switch {
			case test.want == "" && len(got) > 0:
				t.Errorf("got %q, want none", got)
			case test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], test.want)):
				t.Errorf("got %q, want one that begins with %q", got, test.want)
			}
		})
	}
}

// layerViolations says what imports what against the table, and the reason.
func layerViolations(packages []importer) []string {
	var violations []string
	for _, one := range packages {
		from := relative(one.ImportPath)
		index := slices.IndexFunc(layers, func(l layer) bool { return matchesAny(l.packages, from, from) })
		if index < 0 {
			violations = append(violations, from+" belongs to no layer: say in the table what it may import, and why")
			continue
		}
		rule := layers[index]
		for _, path := range one.Imports {
			to := relative(path)
			if !matchesAny(rule.imports, from, to) {
				violations = append(violations, from+" imports "+to+": "+rule.reason)
			} else if reason := exampleReason(from, to); reason != "" {
				violations = append(violations, from+" imports "+to+": "+reason)
			}
		}
		if rule.tests == nil {
			continue
		}
		for _, path := range slices.Concat(one.TestImports, one.XTestImports) {
			to := relative(path)
			if !matchesAny(rule.imports, from, to) && !matchesAny(rule.tests, from, to) {
				violations = append(violations, from+" imports "+to+" in a test: the core's tests need the core only, so that it can become a module of its own")
			}
		}
	}
	slices.Sort(violations)
	return slices.Compact(violations)
}

// exampleReason holds the rule that the examples are there to show: examples/APP/MODULE/internal knows another module by its events.
func exampleReason(from, to string) string {
	importing, imported := strings.Split(from, "/"), strings.Split(to, "/")
	if len(importing) < 4 || importing[0] != "examples" || imported[0] != "examples" {
		return ""
	}
	switch importing[3] {
	case "events":
		return "events are what modules share, so they know nothing but the library"
	case "internal":
		own := len(imported) >= 3 && imported[1] == importing[1] && imported[2] == importing[2]
		events := len(imported) == 4 && imported[1] == importing[1] && imported[3] == "events"
		if !own && !events {
			return "a module knows another one by its events only"
		}
	}
	return ""
}

// relative writes an import path as the table does; the standard library's get a prefix that no folder has.
func relative(path string) string {
	if path == modulePath {
		return "."
	}
	if rest, ok := strings.CutPrefix(path, modulePath+"/"); ok {
		return rest
	}
	if isThirdParty(path) {
		return path
	}
	return standardPrefix + path
}

// isThirdParty relies on the go command's rule: only the standard library has no dot in the first element.
func isThirdParty(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return path != "." && strings.Contains(first, ".")
}

func isOurs(path string) bool {
	return path == "." || !isThirdParty(path) && !strings.HasPrefix(path, standardPrefix)
}

func matchesAny(patterns []string, from, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, from, path) })
}

func matches(pattern, from, path string) bool {
	switch pattern {
	case "standard":
		return strings.HasPrefix(path, standardPrefix)
	case "third-party":
		return isThirdParty(path)
	case "ours":
		return isOurs(path)
	case "own/...":
		parts := strings.SplitN(from, "/", 3)
		pattern = strings.Join(parts[:min(2, len(parts))], "/") + "/..."
	}
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == folder || strings.HasPrefix(path, folder+"/")
	}
	return path == pattern
}
