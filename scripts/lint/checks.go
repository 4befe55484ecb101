package main

import (
	"slices"

	"codeberg.org/polyfloyd/go-errorlint/errorlint"
	"github.com/gordonklaus/ineffassign/pkg/ineffassign"
	"github.com/jingyugao/rowserrcheck/passes/rowserr"
	"github.com/karamaru-alpha/copyloopvar"
	"github.com/kisielk/errcheck/errcheck"
	"github.com/ldez/usetesting"
	sqlclosed "github.com/ryanrolds/sqlclosecheck/pkg/analyzer"
	"github.com/sanposhiho/wastedassign/v2"
	"github.com/sonatard/noctx"
	"github.com/timakin/bodyclose/passes/bodyclose"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/appends"
	"golang.org/x/tools/go/analysis/passes/asmdecl"
	"golang.org/x/tools/go/analysis/passes/assign"
	"golang.org/x/tools/go/analysis/passes/atomic"
	"golang.org/x/tools/go/analysis/passes/atomicalign"
	"golang.org/x/tools/go/analysis/passes/bools"
	"golang.org/x/tools/go/analysis/passes/buildtag"
	"golang.org/x/tools/go/analysis/passes/cgocall"
	"golang.org/x/tools/go/analysis/passes/composite"
	"golang.org/x/tools/go/analysis/passes/copylock"
	"golang.org/x/tools/go/analysis/passes/deepequalerrors"
	"golang.org/x/tools/go/analysis/passes/defers"
	"golang.org/x/tools/go/analysis/passes/directive"
	"golang.org/x/tools/go/analysis/passes/errorsas"
	"golang.org/x/tools/go/analysis/passes/framepointer"
	"golang.org/x/tools/go/analysis/passes/hostport"
	"golang.org/x/tools/go/analysis/passes/httpmux"
	"golang.org/x/tools/go/analysis/passes/httpresponse"
	"golang.org/x/tools/go/analysis/passes/ifaceassert"
	"golang.org/x/tools/go/analysis/passes/loopclosure"
	"golang.org/x/tools/go/analysis/passes/lostcancel"
	"golang.org/x/tools/go/analysis/passes/nilfunc"
	"golang.org/x/tools/go/analysis/passes/nilness"
	"golang.org/x/tools/go/analysis/passes/printf"
	"golang.org/x/tools/go/analysis/passes/reflectvaluecompare"
	"golang.org/x/tools/go/analysis/passes/shift"
	"golang.org/x/tools/go/analysis/passes/sigchanyzer"
	"golang.org/x/tools/go/analysis/passes/slog"
	"golang.org/x/tools/go/analysis/passes/sortslice"
	"golang.org/x/tools/go/analysis/passes/stdmethods"
	"golang.org/x/tools/go/analysis/passes/stdversion"
	"golang.org/x/tools/go/analysis/passes/stringintconv"
	"golang.org/x/tools/go/analysis/passes/structtag"
	"golang.org/x/tools/go/analysis/passes/testinggoroutine"
	"golang.org/x/tools/go/analysis/passes/tests"
	"golang.org/x/tools/go/analysis/passes/timeformat"
	"golang.org/x/tools/go/analysis/passes/unmarshal"
	"golang.org/x/tools/go/analysis/passes/unreachable"
	"golang.org/x/tools/go/analysis/passes/unsafeptr"
	"golang.org/x/tools/go/analysis/passes/unusedresult"
	"golang.org/x/tools/go/analysis/passes/unusedwrite"
	"golang.org/x/tools/go/analysis/passes/waitgroup"
	"honnef.co/go/tools/analysis/lint"
	"honnef.co/go/tools/quickfix"
	"honnef.co/go/tools/simple"
	"honnef.co/go/tools/staticcheck"
	"honnef.co/go/tools/stylecheck"
)

// goVet is all that go vet knows, but for fieldalignment (fields are in the order in which a reader wants them) and shadow (an err of an
// inner block is how Go is written).
var goVet = []*analysis.Analyzer{
	appends.Analyzer, asmdecl.Analyzer, assign.Analyzer, atomic.Analyzer, atomicalign.Analyzer, bools.Analyzer, buildtag.Analyzer,
	cgocall.Analyzer, composite.Analyzer, copylock.Analyzer, deepequalerrors.Analyzer, defers.Analyzer, directive.Analyzer,
	errorsas.Analyzer, framepointer.Analyzer, hostport.Analyzer, httpmux.Analyzer, httpresponse.Analyzer, ifaceassert.Analyzer,
	loopclosure.Analyzer, lostcancel.Analyzer, nilfunc.Analyzer, nilness.Analyzer, printf.Analyzer, reflectvaluecompare.Analyzer,
	shift.Analyzer, sigchanyzer.Analyzer, slog.Analyzer, sortslice.Analyzer, stdmethods.Analyzer, stdversion.Analyzer,
	stringintconv.Analyzer, structtag.Analyzer, testinggoroutine.Analyzer, tests.Analyzer, timeformat.Analyzer, unmarshal.Analyzer,
	unreachable.Analyzer, unsafeptr.Analyzer, unusedresult.Analyzer, unusedwrite.Analyzer, waitgroup.Analyzer,
}

// notOfStaticcheck are the checks of staticcheck that are left out, each with its reason.
var notOfStaticcheck = []string{
	"ST1000",                     // revive's package-comments says it once
	"ST1020", "ST1021", "ST1022", // revive's exported says it once
	"QF1008", // an embedded field that is named says more
}

// checked are functions whose errors nobody has to look at.
var checked = []string{
	// They write to memory or to a terminal.
	"(*strings.Builder).WriteString", "fmt.Fprint", "fmt.Fprintf", "fmt.Fprintln",
}

// analyzers lists all checks, each under the name that `//nolint:NAME // reason` takes.
func analyzers() []*analysis.Analyzer {
	errcheck.DefaultExcludedSymbols = append(errcheck.DefaultExcludedSymbols, checked...)
	var all []*analysis.Analyzer
	add := func(name string, some ...*analysis.Analyzer) {
		for _, a := range some {
			all = append(all, excepting(name, a))
		}
	}
	add("govet", goVet...)
	add("staticcheck", ofStaticcheck(staticcheck.Analyzers, simple.Analyzers, stylecheck.Analyzers, quickfix.Analyzers)...)
	add("unused", unusedCode)
	add("bodyclose", bodyclose.Analyzer)                     // a response that nobody closes keeps its connection
	add("copyloopvar", copyloopvar.NewAnalyzer())            // copies that Go 1.22 made useless
	add("errcheck", errcheck.Analyzer)                       // an error that nobody looks at
	add("errorlint", set(errorlint.NewAnalyzer(), "errorf")) // == and type assertions on errors that may be wrapped
	add("forbidigo", sleeping)                               // what we do not use, with its replacement
	add("ineffassign", ineffassign.Analyzer)                 // a value that nobody reads
	add("misspell", spelling)
	add("noctx", noctx.Analyzer)               // requests that cannot be cancelled
	add("revive", comments)                    // exported names without a comment
	add("rowserrcheck", rowserr.NewAnalyzer()) // rows.Err after the loop
	add("sqlclosecheck", sqlclosed.NewAnalyzer())
	add("unconvert", conversions)
	// t.Context and t.TempDir instead of ones that outlive the test
	add("usetesting", usetesting.NewAnalyzer())
	add("wastedassign", wastedassign.Analyzer)
	seen := map[*analysis.Analyzer]bool{}
	for _, a := range all {
		onlyOurs(a, seen)
	}
	return append(all, exceptions)
}

func set(a *analysis.Analyzer, flags ...string) *analysis.Analyzer {
	for _, name := range flags {
		if err := a.Flags.Set(name, "true"); err != nil {
			panic(err) // a flag that this version does not have
		}
	}
	return a
}

func ofStaticcheck(lists ...[]*lint.Analyzer) []*analysis.Analyzer {
	var some []*analysis.Analyzer
	for _, list := range lists {
		for _, a := range list {
			if !slices.Contains(notOfStaticcheck, a.Analyzer.Name) {
				some = append(some, a.Analyzer)
			}
		}
	}
	return some
}
