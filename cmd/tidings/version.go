package main

import (
	"context"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// built says what this binary was made of.
func built() (version, revision string) {
	version = "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, ""
	}
	if info.Main.Version != "" {
		version = info.Main.Version
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			revision = setting.Value
		}
	}
	return version, revision
}

func versionText() string {
	version, revision := built()
	text := "tidings " + version
	if revision != "" {
		text += " " + revision
	}
	return text + " " + runtime.Version()
}

func versionVerb(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Says which version this is", Args: cobra.NoArgs,
		RunE: s.do(func(context.Context, []string) error {
			version, revision := built()
			value := struct {
				Version  string `json:"version"`
				Revision string `json:"revision,omitempty"`
				Go       string `json:"go"`
			}{version, revision, runtime.Version()}
			return s.print(value, func(w io.Writer) { printf(w, "%s\n", versionText()) })
		}),
	}
}
